//! Rows of usage in a call, as `lua/usage.lua` describes them.

use super::words::Packed;

/// What a member's action comes to on a day, if its events are charged or free. Day and action by their place in lists.
pub struct Row<'a> {
    pub day: usize,
    pub user: &'a str,
    pub action: usize,
    pub charged: usize,
    /// In thousandths.
    pub cost: usize,
    pub free: usize,
}

fn column<'a>(packed: &mut Packed, rows: &[Row<'a>], put: impl Fn(&mut Packed, &Row<'a>)) {
    packed.list(rows.len());
    rows.iter().for_each(|row| put(packed, row));
}

/// Rows of usage as a journal has them.
pub fn told(rows: &[Row], actions: &[&str], days: usize) -> Packed {
    let mut told = Packed::default();
    told.list(if days > 1 { 7 } else { 6 });
    told.list(actions.len());
    actions.iter().for_each(|action| told.text(action));
    column(&mut told, rows, |packed, row| packed.text(row.user));
    column(&mut told, rows, |packed, row| packed.index(row.action));
    column(&mut told, rows, |packed, row| packed.number(row.charged));
    column(&mut told, rows, |packed, row| packed.number(row.cost));
    column(&mut told, rows, |packed, row| packed.number(row.free));
    if days > 1 {
        column(&mut told, rows, |packed, row| packed.index(row.day));
    }
    told
}
