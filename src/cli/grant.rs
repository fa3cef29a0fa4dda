//! Credits on top of plan and add-ons, what is left of them taken back, and corrections.

use clap::{Args, value_parser};
use serde::Serialize;

use super::account::Sending;
use super::output::Output;
use super::request::{self, Request};
use super::{Ended, values};
use crate::config::Config;
use crate::ingest::decode::PRIORITY_MAX;
use crate::ledger::command::{ADJUST, GRANT, GRANT_VOID};
use crate::ledger::credits::Credits;
use crate::ledger::grants::{GrantKind, PRIORITY_DEFAULT};

#[derive(Debug, Args)]
pub struct GrantArgs {
    #[arg(value_parser = values::name)]
    pub account: String,
    /// A credit type of the catalogue
    #[arg(long = "type", value_name = "TYPE", value_parser = values::name)]
    pub credit_type: String,
    /// How many credits, with at most three decimals
    #[arg(long, allow_negative_numbers = true, value_parser = values::positive_credits)]
    pub amount: Credits,
    /// topup (bought) or promo (given)
    #[arg(long, default_value = "topup", value_parser = values::grant_kind)]
    pub kind: GrantKind,
    /// Smaller ones burn first; plan and add-ons have 100
    #[arg(long, default_value_t = PRIORITY_DEFAULT, value_parser = value_parser!(u32).range(..=i64::from(PRIORITY_MAX)))]
    pub priority: u32,
    /// When the credits can be used, for instance 2026-01-31T00:00:00Z [default: at once, as for a time that has passed]
    #[arg(long, value_name = "TIME", value_parser = values::instant)]
    pub effective_at: Option<String>,
    /// When what is left of them expires [default: the end of the cycle in which they begin]
    #[arg(long, value_name = "TIME", value_parser = values::instant)]
    pub expires_at: Option<String>,
    #[command(flatten)]
    pub sending: Sending,
}

#[derive(Debug, Args)]
pub struct VoidGrantArgs {
    #[arg(value_parser = values::name)]
    pub account: String,
    /// The id of the grant's command, as `grant` printed it and `account get` shows it
    #[arg(long, value_name = "COMMAND_ID", value_parser = values::name)]
    pub grant: String,
    #[command(flatten)]
    pub sending: Sending,
}

#[derive(Debug, Args)]
pub struct AdjustArgs {
    #[arg(value_parser = values::name)]
    pub account: String,
    /// A credit type of the catalogue
    #[arg(long = "type", value_name = "TYPE", value_parser = values::name)]
    pub credit_type: String,
    /// More than 0 gives credits until the cycle ends; less counts them as used, beyond what remains if need be
    #[arg(long, allow_negative_numbers = true, value_parser = values::signed_credits)]
    pub amount: Credits,
    /// For those who read the ledger
    #[arg(long, value_parser = values::name)]
    pub reason: String,
    #[command(flatten)]
    pub sending: Sending,
}

/// `data` of `credits.grant.v1`.
#[derive(Debug, Serialize)]
struct GrantData {
    credit_type: String,
    amount: Credits,
    kind: &'static str,
    priority: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    effective_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// `data` of `credits.grant.void.v1`.
#[derive(Debug, Serialize)]
struct GrantVoidData {
    grant: String,
}

/// `data` of `credits.adjust.v1`.
#[derive(Debug, Serialize)]
struct AdjustData {
    credit_type: String,
    amount: Credits,
    reason: String,
}

pub async fn grant(args: GrantArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let GrantArgs { account, credit_type, amount, kind, priority, effective_at, expires_at, sending } = args;
    let data = GrantData { credit_type, amount, kind: kind.name(), priority, effective_at, expires_at };
    send(account, GRANT, data, sending, config, output).await
}

pub async fn void(args: VoidGrantArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let VoidGrantArgs { account, grant, sending } = args;
    send(account, GRANT_VOID, GrantVoidData { grant }, sending, config, output).await
}

pub async fn adjust(args: AdjustArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let AdjustArgs { account, credit_type, amount, reason, sending } = args;
    send(account, ADJUST, AdjustData { credit_type, amount, reason }, sending, config, output).await
}

async fn send<D: Serialize>(
    account: String,
    command_type: &'static str,
    data: D,
    sending: Sending,
    config: &Config,
    output: Output,
) -> anyhow::Result<Ended> {
    let Sending { id, timeout } = sending;
    request::send(Request { account, command_type, id, data, timeout }, config, output).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_are_as_the_meter_reads_them() {
        let grant = GrantData {
            credit_type: "email".into(),
            amount: Credits::from_thousandths(250),
            kind: "promo",
            priority: 7,
            effective_at: None,
            expires_at: Some("2026-01-31T00:00:00Z".into()),
        };
        let adjust = AdjustData {
            credit_type: "email".into(),
            amount: Credits::from_thousandths(-1500),
            reason: "an \"import\"".into(),
        };
        let json = |data: &dyn Fn() -> serde_json::Result<String>| data().unwrap();
        assert_eq!(
            json(&|| serde_json::to_string(&grant)),
            r#"{"credit_type":"email","amount":0.25,"kind":"promo","priority":7,"expires_at":"2026-01-31T00:00:00Z"}"#
        );
        assert_eq!(
            json(&|| serde_json::to_string(&adjust)),
            r#"{"credit_type":"email","amount":-1.5,"reason":"an \"import\""}"#
        );
    }
}
