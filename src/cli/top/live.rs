//! The live view: looks, draws, and leaves the terminal as it was.

use std::time::Duration;

use anyhow::Context;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Top, View, draw};

/// How soon a key, or that the command has ended, is seen.
const KEYS_POLL: Duration = Duration::from_millis(50);

/// What a person does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Leave,
    /// The window has another size, or is to be drawn anew.
    Redraw,
}

pub async fn run(mut top: Top, stop: CancellationToken) -> anyhow::Result<()> {
    let mut screen = Screen::enter()?;
    let mut acts = read_keys(stop.clone());
    let mut ticks = tokio::time::interval(top.every);
    // A look that took long is not made up for.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mode = format!("every {}  q quits", humantime::format_duration(top.every));
    let mut view = View { mode: mode.clone(), ..top.view()? };
    loop {
        screen.show(&view)?;
        tokio::select! {
            _ = ticks.tick() => {
                // A meter that does not answer must not hold up who wants to leave.
                tokio::select! {
                    () = top.look() => {}
                    () = left(&mut acts) => return Ok(()),
                    () = stop.cancelled() => return Ok(()),
                }
                view = View { mode: mode.clone(), ..top.view()? };
            }
            act = acts.recv() => match act {
                Some(Act::Redraw) => {}
                Some(Act::Leave) | None => return Ok(()),
            },
            () = stop.cancelled() => return Ok(()),
        }
    }
}

async fn left(acts: &mut mpsc::Receiver<Act>) {
    while let Some(Act::Redraw) = acts.recv().await {}
}

/// The terminal, taken; given back also after an error, and after a panic by the hook that ratatui sets.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn enter() -> anyhow::Result<Screen> {
        let terminal = ratatui::try_init().context("the terminal cannot be used; --once needs none")?;
        Ok(Screen { terminal })
    }

    fn show(&mut self, view: &View) -> anyhow::Result<()> {
        let drawn = self.terminal.draw(|frame| {
            let area = frame.area();
            draw::draw(view, area, frame.buffer_mut());
        });
        drawn.map(|_| ()).context("drawing")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // After a panic the hook has done so, and again would take the cursor back to before its message.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}

/// Keys are read on a thread of their own, which ends soon after the command.
fn read_keys(stop: CancellationToken) -> mpsc::Receiver<Act> {
    let (sender, acts) = mpsc::channel(8);
    std::thread::spawn(move || {
        while !stop.is_cancelled() && !sender.is_closed() {
            let act = match event::poll(KEYS_POLL) {
                Ok(false) => None,
                Ok(true) => event::read().map_or(Some(Act::Leave), |event| act(&event)),
                // The terminal is gone.
                Err(_) => Some(Act::Leave),
            };
            if act.is_some_and(|act| sender.blocking_send(act).is_err()) {
                return;
            }
        }
    });
    acts
}

fn act(event: &Event) -> Option<Act> {
    match event {
        Event::Key(KeyEvent { kind: KeyEventKind::Release, .. }) => None,
        Event::Key(key) => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Act::Leave),
            // In a terminal that is taken, Ctrl-C is a key like any other.
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Act::Leave),
            _ => None,
        },
        Event::Resize(_, _) => Some(Act::Redraw),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_and_ctrl_c_leave() {
        let check = |code: KeyCode, modifiers: KeyModifiers, expected: Option<Act>| {
            assert_eq!(act(&Event::Key(KeyEvent::new(code, modifiers))), expected, "{code:?}");
        };
        check(KeyCode::Char('q'), KeyModifiers::NONE, Some(Act::Leave));
        check(KeyCode::Esc, KeyModifiers::NONE, Some(Act::Leave));
        check(KeyCode::Char('c'), KeyModifiers::CONTROL, Some(Act::Leave));
        check(KeyCode::Char('c'), KeyModifiers::NONE, None);
        assert_eq!(act(&Event::Resize(80, 24)), Some(Act::Redraw));
        assert_eq!(act(&Event::FocusLost), None);
    }
}
