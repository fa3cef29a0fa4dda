//! What a team sees of its account, as JSON: the same that the command line answers with `--json`. Only where
//! `http.accounts` is on.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::Semaphore;

/// More wait: who asks must not hold the meter up.
const ANSWERED_AT_ONCE_MAX: usize = 16;

/// Who can tell of accounts.
pub trait Accounts: Send + Sync + 'static {
    /// A JSON document.
    fn answer(&self, question: Question) -> Pin<Box<dyn Future<Output = Result<String, Refused>> + Send + '_>>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Balance { account: String },
    Usage { account: String, parameters: HashMap<String, String> },
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The question is wrong.
    Invalid(String),
    UnknownAccount(String),
    /// Asked again later, it may be answered.
    Unavailable(String),
}

#[derive(Clone)]
struct Asked {
    accounts: Arc<dyn Accounts>,
    free: Arc<Semaphore>,
}

pub fn router(accounts: Arc<dyn Accounts>) -> Router {
    Router::new()
        .route("/v1/accounts/{account}/balance", get(balance))
        .route("/v1/accounts/{account}/usage", get(usage))
        .with_state(Asked { accounts, free: Arc::new(Semaphore::new(ANSWERED_AT_ONCE_MAX)) })
}

/// Refused where it is no UTF-8.
type Account = Result<Path<String>, PathRejection>;

async fn balance(State(asked): State<Asked>, account: Account) -> Response {
    match account {
        Ok(Path(account)) => asked.ask(Question::Balance { account }).await,
        Err(rejection) => answer(Err(Refused::Invalid(rejection.body_text()))),
    }
}

async fn usage(
    State(asked): State<Asked>,
    account: Account,
    Query(parameters): Query<HashMap<String, String>>,
) -> Response {
    match account {
        Ok(Path(account)) => asked.ask(Question::Usage { account, parameters }).await,
        Err(rejection) => answer(Err(Refused::Invalid(rejection.body_text()))),
    }
}

impl Asked {
    async fn ask(&self, question: Question) -> Response {
        let _one = self.free.acquire().await.expect("it is never closed");
        answer(self.accounts.answer(question).await)
    }
}

fn answer(answer: Result<String, Refused>) -> Response {
    let (status, body) = match answer {
        Ok(document) => (StatusCode::OK, document),
        Err(refused) => refused.told(),
    };
    // A balance is out of date at once.
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}

impl Refused {
    fn told(self) -> (StatusCode, String) {
        let (status, error, message) = match self {
            Refused::Invalid(message) => (StatusCode::BAD_REQUEST, "invalid", message),
            Refused::UnknownAccount(message) => (StatusCode::NOT_FOUND, "unknown_account", message),
            Refused::Unavailable(message) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", message),
        };
        (status, json!({ "error": error, "message": message }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::Site;

    struct Echo;

    impl Accounts for Echo {
        fn answer(&self, question: Question) -> Pin<Box<dyn Future<Output = Result<String, Refused>> + Send + '_>> {
            Box::pin(async move {
                match question {
                    Question::Balance { account } if account == "nobody" => Err(Refused::UnknownAccount("no".into())),
                    Question::Balance { account } if account == "later" => Err(Refused::Unavailable("away".into())),
                    Question::Usage { parameters, .. } if parameters.contains_key("form") => {
                        Err(Refused::Invalid("form".into()))
                    }
                    question => Ok(json!(format!("{question:?}")).to_string()),
                }
            })
        }
    }

    #[tokio::test]
    async fn questions_are_taken_apart_and_each_answer_has_its_status() {
        let site = Site::open(Some(Arc::new(Echo))).await;
        let check = async |path: &str, status: u16, body: &str| {
            let answer = site.ask(path).await;
            assert_eq!((answer.status, answer.body.as_str()), (status, body), "{path}");
            let head = answer.head.to_lowercase();
            assert!(head.contains("content-type: application/json") && head.contains("no-store"), "{head}");
        };
        check("/v1/accounts/acme/balance", 200, r#""Balance { account: \"acme\" }""#).await;
        // Names have any characters but control ones.
        check("/v1/accounts/a%2Fb%20%C3%A9/balance", 200, r#""Balance { account: \"a/b é\" }""#).await;
        let usage = r#""Usage { account: \"acme\", parameters: {\"by\": \"day,user\"} }""#;
        check("/v1/accounts/acme/usage?by=day,user", 200, usage).await;
        check("/v1/accounts/nobody/balance", 404, r#"{"error":"unknown_account","message":"no"}"#).await;
        check("/v1/accounts/later/balance", 503, r#"{"error":"unavailable","message":"away"}"#).await;
        check("/v1/accounts/acme/usage?form=x", 400, r#"{"error":"invalid","message":"form"}"#).await;
        let no_text = r#"{"error":"invalid","message":"Invalid URL: Invalid UTF-8 in `account`"}"#;
        check("/v1/accounts/%ff/balance", 400, no_text).await;
        check("/v1/accounts/%ff/usage", 400, no_text).await;
        assert_eq!(site.ask("/v1/accounts/acme").await.status, 404);
        assert_eq!(site.ask("/livez").await.status, 200, "the operators' stays");
    }

    #[tokio::test]
    async fn nothing_is_told_where_it_is_off() {
        let site = Site::open(None).await;
        assert_eq!(site.ask("/v1/accounts/acme/balance").await.status, 404);
    }
}
