//! The content in one spelling, for the hash that shards store: a line each, in the order of names. What a later
//! version adds is left out where a file does not use it, so that the hash of an unchanged file stays.

use std::collections::BTreeMap;

use super::{Action, Amount, Plan, Price, Threshold};

pub fn canonical(
    credit_types: &[String],
    actions: &BTreeMap<String, Action>,
    plans: &BTreeMap<String, Plan>,
) -> String {
    let mut lines = vec![format!("credit_types {}", sorted(credit_types))];
    for (name, action) in actions {
        let Action { credit_type, prices, free_outcomes, charge_once, voidable, line: _ } = action;
        let (base, others) = prices.split_last().expect("an action has a price");
        lines.push(format!("action {name} {credit_type} {} free={:?}", base.credits, sorted(free_outcomes)));
        lines.extend(others.iter().map(|price| format!("price {name} {}", spelled(price))));
        lines.extend(charge_once.map(|by| format!("charge_once {name} {}", by.name())));
        lines.extend(voidable.then(|| format!("voidable {name}")));
    }
    for (name, plan) in plans {
        let Plan { interval, allowances, actions, overage, thresholds, prices, carry_over_max, line: _ } = plan;
        let (first, later) = allowances.split_first().expect("a plan has an allowance");
        let always = actions.iter().filter(|(_, when)| when[0].always()).map(|(name, _)| name.clone());
        let always: Vec<_> = always.collect();
        let thresholds: Vec<_> = thresholds.iter().map(Threshold::to_string).collect();
        lines.push(format!(
            "plan {name} {} {} actions={} overage={overage} thresholds={}",
            interval.name(),
            amounts(&first.amounts),
            sorted(&always),
            sorted(&thresholds),
        ));
        for (action, when) in actions {
            let dated = when.iter().filter(|each| !each.always());
            lines.extend(dated.map(|each| {
                format!("entitled {name} {action} from={} until={}", time(each.from_ms), time(each.until_ms))
            }));
        }
        for allowance in later {
            let from_ms = allowance.from_ms.expect("only the first has no start");
            lines.push(format!("allowance {name} from={from_ms} {}", amounts(&allowance.amounts)));
        }
        for (action, prices) in prices {
            lines.extend(prices.iter().map(|price| format!("plan_price {name} {action} {}", spelled(price))));
        }
        lines.extend(carry_over_max.iter().map(|(credit_type, max)| format!("carry_over {name} {credit_type}={max}")));
    }
    lines.join("\n")
}

fn spelled(price: &Price) -> String {
    let from = price.from_ms.map_or_else(|| "start".to_owned(), |from_ms| from_ms.to_string());
    format!("{} from={from} when={}", price.credits, price.when)
}

fn time(bound_ms: Option<i64>) -> String {
    bound_ms.map_or_else(|| "none".to_owned(), |bound_ms| bound_ms.to_string())
}

fn amounts(amounts: &BTreeMap<String, Amount>) -> String {
    sorted(&amounts.iter().map(|(credit_type, amount)| format!("{credit_type}={amount}")).collect::<Vec<_>>())
}

fn sorted(texts: &[String]) -> String {
    let mut texts = texts.to_vec();
    texts.sort_unstable();
    texts.join(",")
}
