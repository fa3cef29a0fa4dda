use super::*;
use crate::ledger::call::RefusalReason;
use crate::ledger::catalogue::{Overage, Threshold};
use crate::ledger::command::{ADJUST, CommandBody, GRANT_VOID, GrantBody};
use crate::ledger::credits::Credits;
use crate::ledger::grants::{GrantKind, PRIORITY_DEFAULT};
use crate::ledger::members::{MEMBER_LIMITS_MAX, limits_text};

#[test]
fn a_put_is_read() {
    let put = commanded(&put_event(PUT_DATA));
    assert_eq!((&*put.account, &*put.id, put.command_type), ("acme", "c-1", "credits.account.put.v1"));
    assert_eq!((put.identity, put.time_ms), (Identity::of("/billing", "c-1"), APPEND_MS));
    let Ok(CommandBody::Put(config)) = put.body else { panic!("{:?}", put.body) };
    let overage = Overage::Allow { limit: Some(Credits::from_thousandths(7500)) };
    assert_eq!((config.overage, config.addons.is_empty()), (Some(overage), false));
    assert_eq!(config.thresholds.unwrap()[1], Threshold::Remaining(Credits::whole(10)));

    let least = commanded(&put_event(r#"{"plan":"free","anchor":"2026-02-28","interval":null}"#));
    let Ok(CommandBody::Put(config)) = least.body else { panic!("{:?}", least.body) };
    assert_eq!((config.timezone, config.interval, config.overage), (chrono_tz::UTC, None, None));
    assert!(config.addons.is_empty() && config.thresholds.is_none());

    let limits = concat!(
        r#"[{"credit_type":"phone","amount":0},{"credit_type":"email","amount":2.5,"user":"ada b"},"#,
        r#"{"credit_type":"email","amount":1}]"#
    );
    let put =
        commanded(&put_event(&change(PUT_DATA, "\"member_limits\":null", &format!("\"member_limits\":{limits}"))));
    let Ok(CommandBody::Put(config)) = put.body else { panic!("{:?}", put.body) };
    assert_eq!(limits_text(&config.member_limits), "email 1000\temail 2500 ada b\tphone 0");

    for (written, overage) in [("\"cap\"", Overage::Cap), ("\"allow\"", Overage::Allow { limit: None })] {
        let put = commanded(&put_event(&change(PUT_DATA, r#"{"allow":{"limit":7.5}}"#, written)));
        let Ok(CommandBody::Put(config)) = put.body else { panic!("{:?}", put.body) };
        assert_eq!(config.overage, Some(overage));
    }
}

#[test]
fn a_grant_is_read() {
    let check = |from: &str, to: &str, thousandths: i64, kind: GrantKind| {
        let amount = Credits::from_thousandths(thousandths);
        let expected = CommandBody::Grant(Box::new(GrantBody {
            credit_type: "email".into(),
            amount,
            kind,
            priority: PRIORITY_DEFAULT,
            effective_ms: None,
            expires_ms: None,
        }));
        assert_eq!(commanded(&grant_event(&change(GRANT_DATA, from, to))).body, Ok(expected), "{to}");
    };
    check("0.125", "0.125", 125, GrantKind::Topup);
    check("0.125", "1000000000000", 1_000_000_000_000_000, GrantKind::Topup);
    check("0.125", "0.10", 100, GrantKind::Topup); // a float would do as well here, but not everywhere
    check("0.125", "999999999999.999", 999_999_999_999_999, GrantKind::Topup);
    check("topup", "promo", 125, GrantKind::Promo);
    check("\"topup\"", "\"topup\",\"expires_at\":null", 125, GrantKind::Topup);
}

#[test]
fn voids_adjustments_and_closings_are_read() {
    let of = |event_type: &str, data: &str| {
        let event = grant_event(data).replace("credits.grant.v1", event_type);
        let command = commanded(&event);
        assert_eq!(command.command_type, event_type);
        command.body
    };
    let void = CommandBody::GrantVoid { grant: "c-1".into() };
    assert_eq!(of(GRANT_VOID, r#"{"grant":"c-1"}"#), Ok(void));
    let adjustment = |thousandths: i64, adds: bool| CommandBody::Adjust {
        credit_type: "email".into(),
        amount: Credits::from_thousandths(thousandths),
        adds,
        reason: "late \"import\"".into(),
    };
    let data = |amount: &str| format!(r#"{{"credit_type":"email","amount":{amount},"reason":"late \"import\""}}"#);
    assert_eq!(of(ADJUST, &data("2.5")), Ok(adjustment(2500, true)));
    assert_eq!(of(ADJUST, &data("-2.5")), Ok(adjustment(2500, false)));
    assert!(of(ADJUST, &data("0")).unwrap_err().message.contains("amount is 0"));
    assert_eq!(of("credits.account.close.v1", "{}"), Ok(CommandBody::Close));
    let dated = concat!(
        r#"{"credit_type":"email","amount":1,"kind":"promo","priority":3,"#,
        r#""effective_at":"2026-07-16T00:00:00Z","expires_at":"2026-07-17T02:00:00+02:00"}"#
    );
    let Ok(CommandBody::Grant(grant)) = of("credits.grant.v1", dated) else { panic!("it is good") };
    assert_eq!((grant.priority, grant.effective_ms), (3, Some(1_784_160_000_000)));
    assert_eq!(grant.expires_ms, Some(1_784_246_400_000));
}

#[test]
fn a_binary_command_is_read() {
    let headers: Headers = &[
        ("ce_specversion", Some(b"1.0")),
        ("ce_id", Some(b"c-1")),
        ("ce_source", Some(b"/billing")),
        ("ce_type", Some(b"credits.grant.v1")),
        ("ce_subject", Some(b"acme")),
        ("ce_time", Some(b"2026-07-15T12:00:01Z")),
    ];
    let Body::Command(binary) = decode(command(GRANT_DATA.as_bytes(), headers)).record.body else {
        panic!("not a command");
    };
    assert_eq!(*binary, commanded(&grant_event(GRANT_DATA)));
    dead(command(b"{", headers), DeadReason::InvalidJson, Some("acme"), "data: EOF");
}

#[test]
fn a_command_with_bad_data_is_refused_with_a_remedy() {
    use RefusalReason::InvalidCommand;
    let check = |value: String, reason: RefusalReason, message: &str| {
        let refusal = commanded(&value).body.expect_err(&value);
        assert!(refusal.reason == reason && refusal.message.contains(message), "{value}: {refusal:?}");
    };
    let put = |from: &str, to: &str, message: &str| {
        check(put_event(&change(PUT_DATA, from, to)), InvalidCommand, message);
    };
    let grant = |from: &str, to: &str, message: &str| {
        check(grant_event(&change(GRANT_DATA, from, to)), InvalidCommand, message);
    };
    check(put_event("null"), InvalidCommand, "data is missing");
    check(put_event("[]"), InvalidCommand, "expected an object");
    check(put_event(&format!("\"{}\"", "x".repeat(9999))), InvalidCommand, "data: invalid type: string");
    check(put_event("{}"), InvalidCommand, "plan is missing or empty: name a plan");
    put("\"plan\"", "\"tier\"", "unknown field `tier`, expected one of `plan`");
    put("\"plan\":\"basic\"", "\"plan\":\"basic\",\"plan\":\"pro\"", "duplicate field `plan`");
    put("\"basic\"", "7", "plan is a number");
    put("\"anchor\":\"2026-01-31\",", "", "anchor is missing");
    for anchor in
        ["2026-1-31", "2026-02-30", "31.01.2026", "2026-01-31T00:00:00Z", "+026-01-31", "2026- 1-31", "1969-12-31"]
    {
        put("2026-01-31", anchor, "is none: write a date from 1970 on");
    }
    put("annual", "weekly", "interval `weekly` is unknown: write one of monthly, quarterly");
    put("Europe/Paris", "Paris", "timezone `Paris` is unknown");
    put("\"Europe/Paris\"", "2", "timezone is a number");
    put("[{\"credit_type\":\"email\",\"amount\":500.5}]", "{\"email\":500}", "addons: invalid type: map");
    put("\"email\",", "\"email\",\"price\":1,", "addons: unknown field `price`");
    put("\"credit_type\":\"email\",", "", "addons[0].credit_type is missing");
    put("{\"credit_type\":\"email\",\"amount\":500.5}", "[\"email\",500]", "addons: invalid type: sequence");
    put("500.5", "0", "addons[0].amount is 0: write more than 0");
    put("500.5", "-1", "addons[0].amount is -1");
    put("500.5", "1e3", "addons[0].amount: `1e3` is not a plain decimal");
    put("500.5}", "1},{\"credit_type\":\"email\",\"amount\":2}", "`email` comes twice");
    put("\"80%\"", "\"101%\"", "thresholds: `101%` is none");
    put("\"80%\"", "80", "thresholds: invalid type: integer");
    put("{\"allow\":{\"limit\":7.5}}", "\"deny\"", "overage is none of");
    put("{\"allow\":{\"limit\":7.5}}", "true", "overage is none of");
    put("{\"limit\":7.5}", "{}", "overage is none of");
    put("{\"limit\":7.5}", "[7.5]", "overage is none of");
    put("7.5", "-7", "overage.allow.limit is negative");
    put("7.5", "0.0001", "overage.allow.limit: `0.0001` has more than three decimals");
    let limits = |written: &str, message: &str| {
        put("\"member_limits\":null", &format!("\"member_limits\":{written}"), message);
    };
    limits("{}", "member_limits: invalid type: map, expected a sequence");
    limits(r#"[{"amount":1}]"#, "member_limits[0].credit_type is missing");
    limits(r#"[{"credit_type":"email"}]"#, "member_limits[0].amount is missing");
    limits(r#"[{"credit_type":"email","amount":-1}]"#, "member_limits[0].amount is negative: write 0 or more");
    limits(r#"[{"credit_type":"email","amount":1,"user":""}]"#, "member_limits[0].user is missing or empty");
    limits(r#"[{"credit_type":"email","amount":1,"member":"ada"}]"#, "unknown field `member`");
    let twice = r#"{"credit_type":"email","amount":1,"user":"ada"},{"credit_type":"email","amount":2}"#;
    limits(&format!("[{twice},{twice}]"), "member_limits: `email` comes twice: keep one");
    let many = (0..=MEMBER_LIMITS_MAX).map(|user| format!(r#"{{"credit_type":"email","amount":1,"user":"u{user}"}}"#));
    let many = many.collect::<Vec<_>>().join(",");
    limits(&format!("[{many}]"), "member_limits has 201 entries: an account has at most 200");

    grant("\"credit_type\"", "\"type\"", "unknown field `type`");
    grant("\"credit_type\":\"email\",", "", "credit_type is missing");
    grant("\"amount\":0.125,", "", "amount is missing");
    grant("0.125", "0", "amount is 0");
    grant("0.125", "-5", "amount is -5: write more than 0");
    grant("0.125", "0.0001", "amount: `0.0001` has more than three decimals");
    grant("0.125", "\"5\"", "not a plain decimal number: write credits as a number");
    grant("0.125", "1000000000001", "beyond the largest amount");
    grant("\"topup\"", "null", "kind is missing");
    grant("topup", "plan", "kind `plan` cannot be granted: write topup");
    grant("topup", "gift", "kind `gift` cannot be granted");
    grant("\"topup\"", "\"topup\",\"priority\":-1", "priority `-1` is none: write 0 (burns first) to 1000");
    grant("\"topup\"", "\"topup\",\"priority\":1001", "priority `1001` is none");
    grant("\"topup\"", "\"topup\",\"expires_at\":\"tomorrow\"", "expires_at `tomorrow` is no time: write an RFC 3339");
    grant("\"topup\"", "\"topup\",\"effective_at\":5", "effective_at");
    let long = commanded(&put_event(&format!("{{\"{}\":1}}", "x".repeat(9999)))).body.unwrap_err();
    assert!(long.message.len() < 400, "{}", long.message.len());
}

#[test]
fn a_command_with_a_bad_envelope_is_dead() {
    use DeadReason::*;
    let check = |from: &str, to: &str, reason: DeadReason, account: Option<&str>| {
        dead(command(change(&put_event(PUT_DATA), from, to).as_bytes(), &[]), reason, account, "");
    };
    check("account.put", "account.open", UnknownType, Some("acme"));
    check("account.put", "usage", UnknownType, Some("acme"));
    check("\"c-1\"", "\"\"", MissingField, Some("acme"));
    check("\"acme\"", "5", WrongType, None);
    check("12:00:01", "12:06:00", TooEarly, Some("acme"));
    check("\"basic\"", "basic", InvalidJson, None);
    check("\"1.0\"", "\"2.0\"", UnsupportedSpecversion, Some("acme"));
}
