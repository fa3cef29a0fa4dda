//! Sentinels tell where the primary is, and make another one when it is gone.
//!
//! They are asked at the start and after each failure, and whom they name is asked for its role before it is believed:
//! a Sentinel may be the last to learn of a failover. That is what Redis asks of clients
//! (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).

use redis::{RedisError, Value};

use super::StoreError;
use super::nodes::Node;
use super::refusal::{Refusal, store_error};

/// Where a Sentinel says that the primary is.
pub async fn primary(sentinel: &Node, name: &str) -> Result<String, StoreError> {
    let failed = |error: RedisError| store_error(&error, &sentinel.address, "");
    let mut connection = sentinel.open(std::time::Duration::ZERO).await.map_err(failed)?;
    let mut question = redis::cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    match question.query_async::<Option<(String, u16)>>(&mut connection).await {
        Ok(Some((host, port))) => Ok(format!("{host}:{port}")),
        Ok(None) => Err(StoreError::Refused {
            place: sentinel.address.clone(),
            refusal: Refusal::UnknownPrimary,
            told: format!("it knows no `{name}`"),
        }),
        Err(error) if error.detail().is_some_and(|detail| detail.contains("unknown command")) => {
            Err(StoreError::Unfit(format!(
                "redis at {} is no Sentinel, but redis.url begins with redis-sentinel or rediss-sentinel",
                sentinel.address
            )))
        }
        Err(error) => Err(failed(error)),
    }
}

/// What a server says it is.
pub enum Role {
    Primary,
    Replica,
    /// With the primaries that it watches.
    Sentinel(Vec<String>),
}

impl Role {
    /// Reads the answer to ROLE; a primary, if it is one that this program does not know.
    pub fn of(answer: &Value) -> Role {
        let Value::Array(parts) = answer else { return Role::Primary };
        let text = |value: &Value| redis::from_redis_value_ref::<String>(value).unwrap_or_default();
        match parts.first().map(text).as_deref() {
            Some("slave") => Role::Replica,
            Some("sentinel") => Role::Sentinel(match parts.get(1) {
                Some(Value::Array(names)) => names.iter().map(text).collect(),
                _ => Vec::new(),
            }),
            _ => Role::Primary,
        }
    }
}
