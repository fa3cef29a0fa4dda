//! The JSON Schema of messages, for those who send or read them.

use clap::Args;

use super::Ended;
use super::output::Output;
use crate::schema::{self, Schema};

#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// The type of a message, like credits.usage.v1; without it all types are listed
    #[arg(value_name = "TYPE", value_parser = of_type)]
    schema: Option<Schema>,
    /// All schemas in one document, which takes every message
    #[arg(long, conflicts_with = "schema")]
    all: bool,
}

fn of_type(event_type: &str) -> Result<Schema, String> {
    let all = schema::all();
    let known: Vec<_> = all.iter().map(|schema| schema.event_type.clone()).collect();
    let found = all.into_iter().find(|schema| schema.event_type == event_type);
    found.ok_or_else(|| format!("the types are {}", known.join(", ")))
}

pub fn run(args: SchemaArgs, output: Output) -> anyhow::Result<Ended> {
    match args.schema {
        Some(Schema { document, .. }) => output.answer(&document, || pretty(&document))?,
        None if args.all || output.json => {
            let document = schema::bundle();
            output.answer(&document, || pretty(&document))?;
        }
        None => drop(output.line(&list(&schema::all()))?),
    }
    Ok(Ended::Well)
}

fn pretty(document: &serde_json::Value) -> String {
    serde_json::to_string_pretty(document).expect("a document is JSON")
}

fn list(schemas: &[Schema]) -> String {
    let width = schemas.iter().map(|schema| schema.event_type.len()).max().unwrap_or(0);
    let line =
        |schema: &Schema| format!("{:width$}  {:9}  {}", schema.event_type, schema.flow.name(), schema.description);
    schemas.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_is_answered_with_the_known_ones() {
        assert_eq!(of_type("credits.low.v1").unwrap().event_type, "credits.low.v1");
        let said = of_type("credits.usage").unwrap_err();
        assert!(said.contains("credits.usage.v1, ") && said.contains("credits.ledger.refund.v1"), "{said}");
    }

    #[test]
    fn a_line_tells_of_each_type() {
        let list = list(&schema::all());
        assert_eq!(list.lines().count(), schema::all().len());
        assert!(list.contains("credits.usage.v1              sent       Usage that a service reports"), "{list}");
        assert!(list.contains("credits.ledger.command.v1     published  How a command ended."), "{list}");
    }
}
