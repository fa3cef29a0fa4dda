//! Draws a view, for a terminal of 80 by 24 or more.

use ratatui::buffer::Buffer;
use ratatui::layout::Constraint::{Fill, Length};
use ratatui::layout::{Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Paragraph, Row, Table, Widget, Wrap};

use super::model::{MeterView, Meters, Quantiles};
use super::{AlarmsView, View};
use crate::cli::output;
use crate::ingest::alerts::Edge;

/// Meters that get a line of their own.
const METERS_MAX: usize = 3;
/// Lag, state and outcomes, mostly with an empty line: 9 remain of 24 for accounts and their titles.
const UPPER_LINES: u16 = 13;
/// What is known only from the second moment on, or not at all.
const UNKNOWN: &str = "-";

const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const WARN: Style = Style::new().fg(Color::Yellow);
const GOOD: Style = Style::new().fg(Color::Green);

pub fn draw(view: &View, area: Rect, buffer: &mut Buffer) {
    let meters = meter_lines(&view.meters.meters);
    let rows = [Length(1), Length(meters.len() as u16), Length(UPPER_LINES), Fill(1)];
    let [head, names, upper, lower] = Layout::vertical(rows).areas(area);
    header(view).render(head, buffer);
    Text::from(meters).render(names, buffer);
    let split = |area: Rect, left: u16, right: u16| {
        let parts = [Fill(left), Length(2), Fill(right)];
        let [left, _, right] = Layout::horizontal(parts).areas(area);
        (left, right)
    };
    let (left, right) = split(upper, 1, 1);
    let lag_lines = (view.meters.lag.len().clamp(1, 3) + 1) as u16;
    let [lag_area, state_area] = Layout::vertical([Length(lag_lines), Fill(1)]).areas(left);
    lag(&view.meters).render(lag_area, buffer);
    state(view).render(state_area, buffer);
    outcomes(&view.meters).render(right, buffer);
    let (left, right) = split(lower, 2, 3);
    match &view.usage_failure {
        None => hottest(view, left.height).render(left, buffer),
        Some(failure) => failed("hottest: not known", failure).render(left, buffer),
    }
    match &view.alerts_failure {
        None => {
            let [title, list] = Layout::vertical([Length(1), Fill(1)]).areas(right);
            Text::styled(alarms_title(&view.alarms), TITLE).render(title, buffer);
            alarms(&view.alarms, list.height).render(list, buffer);
        }
        Some(failure) => failed("in alarm: not known", failure).render(right, buffer),
    }
}

/// Why there is nothing to show.
fn failed<'a>(title: &'a str, failure: &'a str) -> Paragraph<'a> {
    let lines = vec![Line::styled(title, TITLE), Line::styled(failure, BAD)];
    Paragraph::new(lines).wrap(Wrap { trim: true })
}

fn header(view: &View) -> Line<'_> {
    let said = format!("  {}  {}", view.at, view.mode);
    Line::from(vec![Span::styled("credit-meter top", TITLE), Span::styled(said, DIM)])
}

fn meter_lines(meters: &[MeterView]) -> Vec<Line<'_>> {
    let line = |meter: &'_ MeterView| {
        let (word, style) = match (meter.answers, meter.ready) {
            (true, true) => ("ready", GOOD),
            (true, false) => ("not ready", BAD),
            (false, _) => ("no answer", BAD),
        };
        let reason = meter.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        Line::from(vec![Span::raw(format!("{}  ", meter.url)), Span::styled(word, style), Span::raw(reason)])
    };
    // Those of which something is to be said come first.
    let mut sorted: Vec<&MeterView> = meters.iter().collect();
    sorted.sort_by_key(|meter| meter.ready);
    let mut lines: Vec<Line> = sorted.iter().take(METERS_MAX).map(|meter| line(meter)).collect();
    if sorted.len() > METERS_MAX {
        let ready = sorted[METERS_MAX..].iter().filter(|meter| meter.ready).count();
        let others = sorted.len() - METERS_MAX;
        lines[METERS_MAX - 1] = Line::raw(format!(
            "and {} more, {} of them ready",
            others + 1,
            ready + usize::from(sorted[METERS_MAX - 1].ready)
        ));
    }
    lines
}

/// A table with a title line, its columns aligned to the right but for the first.
fn table<'a>(title: Vec<&'a str>, rows: Vec<Row<'a>>, widths: &[u16]) -> Table<'a> {
    let [name, others @ ..] = &title[..] else { unreachable!("a table has columns") };
    let cells = [Text::styled(*name, TITLE)].into_iter().chain(others.iter().map(|other| right(*other, DIM)));
    let widths = [Fill(1)].into_iter().chain(widths.iter().map(|width| Length(*width)));
    Table::new(rows, widths).header(Row::new(cells)).column_spacing(1)
}

fn right<'a>(text: impl Into<String>, style: Style) -> Text<'a> {
    Text::styled(text.into(), style).right_aligned()
}

fn lag(meters: &Meters) -> Table<'_> {
    let rows = meters.lag.iter().map(|lag| {
        let style = if lag.records > 0 { WARN } else { Style::new() };
        let age = if lag.records > 0 { span(lag.seconds) } else { UNKNOWN.to_owned() };
        Row::new([Text::raw(lag.topic.as_str()), right(grouped(lag.records), style), right(age, style)])
    });
    table(vec!["lag", "records", "age"], rows.collect(), &[11, 10])
}

fn state(view: &View) -> Table<'_> {
    let meters = &view.meters;
    let mut rows = Vec::new();
    let mut row = |name: &'static str, value: String, style: Style| {
        rows.push(Row::new([Text::raw(name), right(value, style)]));
    };
    let plain = Style::new();
    row("arriving", view.arriving_per_second.map_or(UNKNOWN.to_owned(), |rate| format!("{} /s", rated(rate))), plain);
    row("delay", times(meters.delay), plain);
    row("call time", times(meters.calls.time), plain);
    let calls = meters.calls.per_second.map_or(UNKNOWN.to_owned(), |rate| format!("{} /s", rated(rate)));
    row("calls", calls, plain);
    // The most frequent reason stands for all.
    let refused = &meters.calls.refused_per_second;
    if let Some((kind, _)) = refused.iter().max_by(|a, b| a.1.total_cmp(b.1)) {
        row("refused", format!("{} /s, most {kind}", rated(refused.values().sum())), WARN);
    } else {
        let none = meters.calls.per_second.map_or(UNKNOWN, |_| "none");
        row("refused", none.to_owned(), plain);
    }
    let oldest = match meters.outbox_oldest_seconds {
        Some(age) if age > 0.0 => format!(", oldest {}", span(age)),
        Some(_) | None => String::new(),
    };
    let waiting = |entries: u64| format!("{} wait{oldest}", grouped(entries));
    row("outbox", meters.outbox_entries.map_or(UNKNOWN.to_owned(), waiting), plain);
    match &meters.meter_time {
        None => row("meter time", UNKNOWN.to_owned(), plain),
        Some(time) => {
            row("meter time", format!("{} behind", span(time.behind_seconds)), plain);
            if let Some(held) = &time.held {
                row("held by", format!("{}/{} for {}", held.topic, held.partition, span(held.seconds)), WARN);
            }
        }
    }
    match (meters.shards_halted, meters.partitions_halted) {
        (None, _) | (_, None) => row("halted", UNKNOWN.to_owned(), plain),
        (Some(0), Some(0)) => row("halted", "nothing".to_owned(), plain),
        (Some(shards), Some(partitions)) => row("halted", format!("shards {shards}, partitions {partitions}"), BAD),
    }
    let widths = [Length(10), Fill(1)];
    Table::new(rows, widths).header(Row::new([Text::styled("state", TITLE)])).column_spacing(1)
}

fn times(quantiles: Quantiles) -> String {
    let of = |time: Option<f64>| time.map_or(UNKNOWN.to_owned(), span);
    format!("p50 {}  p99 {}", of(quantiles.p50_seconds), of(quantiles.p99_seconds))
}

fn outcomes(meters: &Meters) -> Table<'_> {
    let rate = |rate: Option<f64>| right(rate.map_or(UNKNOWN.to_owned(), rated), Style::new());
    let outcomes = meters.outcomes.iter().map(|outcome| {
        let style = if outcome.events == 0 { DIM } else { Style::new() };
        let events = right(grouped(outcome.events), style);
        Row::new([Text::styled(outcome.outcome, style), rate(outcome.per_second), events])
    });
    let all = [Text::styled("all", TITLE), rate(meters.events_per_second), right(grouped(meters.events), TITLE)];
    let title = Row::new([Text::styled("credits charged", TITLE)]);
    let credits = meters.credits.iter().map(|charged| {
        let name = Text::raw(charged.credit_type.as_str());
        Row::new([name, rate(charged.per_second)])
    });
    let rows = outcomes.chain([Row::new(all), title]).chain(credits).collect();
    table(vec!["events", "per s", "since start"], rows, &[9, 13])
}

fn hottest(view: &View, lines: u16) -> Table<'_> {
    let rows = view.hottest.iter().take(lines.into()).map(|hot| {
        let share = right(format!("{:.1} %", hot.share * 100.0), Style::new());
        let rate = hot.events_per_second.map_or(UNKNOWN.to_owned(), rated);
        Row::new([Text::raw(hot.account.as_str()), share, right(rate, Style::new())])
    });
    table(vec!["hottest", "share", "per s"], rows.collect(), &[6, 8])
}

fn alarms(alarms: &AlarmsView, lines: u16) -> Table<'_> {
    let rows = alarms.newest.iter().take(lines.into()).map(|alarm| {
        let style = if alarm.state == Edge::Exhausted.name() { BAD } else { WARN };
        let left = alarm.remaining.map_or("unlimited".to_owned(), |remaining| remaining.to_string());
        let names = [Text::raw(alarm.account.as_str()), Text::raw(alarm.credit_type.as_str())];
        Row::new(names.into_iter().chain([right(left, Style::new()), Text::styled(alarm.state, style)]))
    });
    let widths = [Fill(1), Length(10), Length(11), Length(9)];
    Table::new(rows, widths).column_spacing(1)
}

fn alarms_title(alarms: &AlarmsView) -> String {
    let more = if alarms.overflowed { " and more" } else { "" };
    match (alarms.complete, alarms.exhausted, alarms.low) {
        (false, exhausted, low) => format!("in alarm, so far: {exhausted} exhausted, {low} low"),
        (true, 0, 0) => "in alarm: none".to_owned(),
        (true, exhausted, low) => format!("in alarm: {exhausted} exhausted, {low} low{more}"),
    }
}

/// A number of things, with commas.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn rated(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { grouped(rate.round() as u64) }
}

/// How long, in at most 8 characters.
fn span(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        _ if seconds < 0.0995 => format!("{:.1} ms", seconds * 1000.0),
        _ if seconds < 0.9995 => format!("{:.0} ms", seconds * 1000.0),
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        _ if whole < 120 => format!("{whole} s"),
        _ if whole < 7_200 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ if whole < 2 * 86_400 => format!("{}h {:02}m", whole / 3_600, whole / 60 % 60),
        _ => format!("{} days", whole / 86_400),
    }
}

/// The same as text, for those who have no terminal.
pub fn text(view: &View, width: u16, height: u16) -> String {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw(view, area, &mut buffer);
    let line = |row: u16| {
        let cells = (0..width).map(|column| buffer[(column, row)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// When a view was taken.
pub fn at(now_ms: i64) -> String {
    output::time(now_ms / 1000 * 1000)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::top::model::tests::meter;
    use crate::cli::top::model::{self, Meter};
    use crate::cli::top::{AlarmView, Hot};
    use crate::ledger::credits::Credits;

    fn view(meters: &[Meter]) -> View {
        let alarm = |account: &str, state: &'static str, remaining: i64| AlarmView {
            account: account.to_owned(),
            credit_type: "enrichment".to_owned(),
            state,
            levels: Vec::new(),
            remaining: Some(Credits::from_thousandths(remaining)),
            granted: Some(Credits::whole(100)),
            since: at(0),
        };
        let hot = |number: u32| Hot {
            account: format!("team-{number:05}"),
            share: 0.5 / f64::from(number),
            events_per_second: Some(1234.5 / f64::from(number)),
        };
        View {
            at: at(1_790_000_000_999),
            mode: "q quits".to_owned(),
            meters: model::view(meters, 1_004_000),
            arriving_per_second: Some(1_500.4),
            hottest: (1..=20).map(hot).collect(),
            alarms: AlarmsView {
                exhausted: 1,
                low: 1,
                complete: true,
                newest: vec![alarm("team-00007", "exhausted", 0), alarm("a team with a long name", "low", 999_999_500)],
                ..AlarmsView::default()
            },
            ..View::default()
        }
    }

    fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(view, frame.area(), frame.buffer_mut())).unwrap();
        let cells = terminal.backend().buffer();
        let line = |row| (0..width).map(|column| cells[(column, row)].symbol()).collect::<String>();
        (0..height).map(|row| line(row).trim_end().to_owned()).collect()
    }

    fn busy() -> Meter {
        let numbers = |scale: u64| {
            let events = |outcome: &str, events: u64| {
                format!("credit_meter_events_total{{action=\"a\",outcome=\"{outcome}\"}} {}\n", events * scale)
            };
            let bucket = |le: &str, calls: u64| {
                format!("credit_meter_call_duration_seconds_bucket{{script=\"apply\",le=\"{le}\"}} {}\n", calls * scale)
            };
            let delay = |le: &str, events: u64| {
                format!("credit_meter_event_applied_delay_seconds_bucket{{le=\"{le}\"}} {}\n", events * scale)
            };
            [
                events("charged", 1_000_000),
                events("dead_lettered", 3),
                bucket("0.004", 50),
                bucket("0.016", 100),
                bucket("+Inf", 100),
                format!("credit_meter_call_duration_seconds_count{{script=\"apply\"}} {}\n", 100 * scale),
                format!("credit_meter_call_refusals_total{{kind=\"stale\"}} {scale}\n"),
                format!("credit_meter_credits_charged_total{{credit_type=\"email\"}} {}\n", 500 * scale),
                "credit_meter_lag_records{partition=\"0\",topic=\"credits.usage\"} 1234567\n".to_owned(),
                "credit_meter_lag_seconds{partition=\"0\",topic=\"credits.usage\"} 754.2\n".to_owned(),
                "credit_meter_lag_records{partition=\"0\",topic=\"credits.commands\"} 0\n".to_owned(),
                "credit_meter_outbox_entries 12345\ncredit_meter_outbox_oldest_seconds 12\n".to_owned(),
                "credit_meter_meter_time_seconds 900\n".to_owned(),
                delay("0.1", 100),
                delay("5", 199),
                delay("+Inf", 200),
                "credit_meter_meter_time_held_seconds{partition=\"3\",topic=\"credits.usage\"} 104\n".to_owned(),
                "credit_meter_shards_halted 1\ncredit_meter_partitions_halted 2\n".to_owned(),
            ]
            .concat()
        };
        meter(&numbers(1), &numbers(2))
    }

    #[test]
    fn it_fits_a_plain_terminal() {
        let expected = "\
credit-meter top  2026-09-21T14:13:20Z  q quits
meter-1:9464  ready
lag                  records        age  events              per s   since start
credits.usage      1,234,567    12m 34s  charged           500,000     2,000,000
credits.commands           0          -  free                    0             0
state                                    capped                  0             0
arriving                       1,500 /s  denied                  0             0
delay             p50 100 ms  p99 5.0 s  duplicate               0             0
call time       p50 4.0 ms  p99 15.8 ms  voided                  0             0
calls                             50 /s  dead_lettered         1.5             6
refused              0.5 /s, most stale  all               500,002     2,000,006
outbox         12,345 wait, oldest 12 s  credits charged
meter time                 104 s behind  email                 250
held by       credits.usage/3 for 104 s
halted           shards 1, partitions 2
hottest          share    per s  in alarm: 1 exhausted, 1 low
team-00001      50.0 %    1,235  team-00007     enrichment           0 exhausted
team-00002      25.0 %      617  a team with a  enrichment    999999.5 low
team-00003      16.7 %      412
team-00004      12.5 %      309
team-00005      10.0 %      247
team-00006       8.3 %      206
team-00007       7.1 %      176
team-00008       6.2 %      154";
        let screen = screen(&view(&[busy()]), 80, 24);
        assert_eq!(screen.join("\n"), expected, "{}", screen.join("\n"));
    }

    #[test]
    fn what_is_not_known_says_why() {
        let silent = Meter { before: None, now: Err("connection refused".into()), ..busy() };
        let mut view = view(&[silent]);
        view.usage_failure = Some("no answer from kafka at 127.0.0.1:9092: connection refused".into());
        view.alerts_failure = view.usage_failure.clone();
        let screen = screen(&view, 80, 24);
        assert_eq!(screen[1], "meter-1:9464  no answer: connection refused");
        assert_eq!(screen[12].trim_end(), "halted                                -", "{}", screen.join("\n"));
        let lower = screen[15..].join("\n");
        assert!(lower.contains("hottest: not known") && lower.contains("in alarm: not known"), "{lower}");
        assert!(lower.contains("connection refused"), "{lower}");
    }

    #[test]
    fn no_size_is_too_small_or_too_large() {
        let silent = Meter { now: Err("connection refused".into()), ..busy() };
        let view = view(&[busy(), silent.clone(), busy(), busy(), silent]);
        for (width, height) in [(1, 1), (1, 50), (300, 1), (20, 5), (79, 23), (81, 25), (400, 200)] {
            screen(&view, width, height);
        }
        draw(&View::default(), Rect::new(0, 0, 80, 24), &mut Buffer::empty(Rect::new(0, 0, 80, 24)));
    }

    #[test]
    fn numbers_are_for_people() {
        let check = |seconds: f64, expected: &str| assert_eq!(span(seconds), expected);
        check(0.0004, "0.4 ms");
        check(0.0161, "16.1 ms");
        check(0.42, "420 ms");
        check(0.9996, "1.0 s");
        check(9.94, "9.9 s");
        check(119.4, "119 s");
        check(119.6, "2m 00s");
        check(7_199.0, "119m 59s");
        check(7_260.0, "2h 01m");
        check(864_000.0, "10 days");
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1_000, 1_234_567].map(grouped).each_ref().map(|text| &**text)
        );
        assert_eq!([0.0, 0.04, 9.94, 9.96, 1234.5].map(rated), ["0", "0.0", "9.9", "10", "1,235"]);
    }
}
