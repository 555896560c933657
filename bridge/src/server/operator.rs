//! What an operator may do from outside: place a call, end one, put one through.
//!
//! Twilio does all of it, so any replica can be asked about any call. Without a token configured there is nothing
//! here at all; with one, a request without it is refused before anything is read.

use crate::base::log_limit::LogLimit;
use crate::base::secret::Secret;
use crate::net::twilio_rest::{Carrier, Problem};
use crate::server::request::{read_body, shortened};
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

/// Who may place, end and transfer calls from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What they show as `Authorization: Bearer ...`; without it no client may. Better given as `BRIDGE_OPERATOR_TOKEN`.
    pub token: Secret,
}

/// What the routes need to know.
#[derive(Clone)]
struct OperatorState {
    token: Arc<Secret>,
    carrier: Arc<dyn Carrier>,
    /// The line about those who were refused.
    refused: Arc<LogLimit>,
}

/// The routes of an operator who shows `token`; none without one.
pub(crate) fn router(token: &Secret, carrier: Option<Arc<dyn Carrier>>) -> Router {
    let Some(carrier) = carrier.filter(|_| !token.is_empty()) else { return Router::new() };
    let state = OperatorState { token: Arc::new(token.clone()), carrier, refused: Arc::default() };
    Router::new()
        .route("/calls", post(place))
        .route("/calls/{call_sid}/hangup", post(hang_up))
        .route("/calls/{call_sid}/transfer", post(transfer))
        .route_layer(middleware::from_fn_with_state(state.clone(), let_in))
        .with_state(state)
}

/// Whether a request shows this token. Never, if there is none to show.
pub fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = shown.and_then(|value| value.split_once(' '));
    let bearer =
        bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    !token.is_empty()
        && bearer.is_some_and(|shown| bool::from(shown.as_bytes().ct_eq(token.expose().as_bytes())))
}

async fn let_in(State(state): State<OperatorState>, request: Request, next: Next) -> Response {
    if shows(request.headers(), &state.token) {
        return next.run(request).await;
    }
    if let Some(left_out) = state.refused.may() {
        let path = shortened(request.uri().path());
        tracing::warn!(path, left_out, "a request without the operator's token was refused");
    }
    let how = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, how, "the operator's token is needed: Authorization: Bearer ...\n")
        .into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    to: String,
    #[serde(default)]
    from: Option<String>,
}

async fn order(request: Request) -> Result<Order, Response> {
    let bytes = read_body(request.into_body()).await?;
    serde_json::from_slice(&bytes).map_err(|_| {
        said(
            StatusCode::BAD_REQUEST,
            &json!({ "error": "a JSON object with \"to\": \"+14155550100\" is wanted" }),
        )
    })
}

async fn place(State(state): State<OperatorState>, request: Request) -> Response {
    let order = match order(request).await {
        Ok(order) => order,
        Err(refusal) => return refusal,
    };
    match state.carrier.place(&order.to, order.from.as_deref()).await {
        Ok(call_sid) => {
            tracing::info!(call_sid, "an operator placed a call");
            said(StatusCode::CREATED, &json!({ "callSid": call_sid }))
        }
        Err(problem) => wrong(&problem),
    }
}

async fn hang_up(State(state): State<OperatorState>, Path(call_sid): Path<String>) -> Response {
    match state.carrier.hang_up(&call_sid).await {
        Ok(()) => {
            tracing::info!(call_sid, "an operator ended a call");
            said(StatusCode::OK, &json!({ "callSid": call_sid, "status": "completed" }))
        }
        Err(problem) => wrong(&problem),
    }
}

async fn transfer(
    State(state): State<OperatorState>,
    Path(call_sid): Path<String>,
    request: Request,
) -> Response {
    let order = match order(request).await {
        Ok(order) => order,
        Err(refusal) => return refusal,
    };
    match state.carrier.transfer(&call_sid, &order.to).await {
        Ok(()) => {
            tracing::info!(call_sid, "an operator transferred a call");
            said(StatusCode::OK, &json!({ "callSid": call_sid, "status": "transferred" }))
        }
        Err(problem) => wrong(&problem),
    }
}

fn wrong(problem: &Problem) -> Response {
    let status = match problem {
        Problem::InvalidRequest(_) => StatusCode::BAD_REQUEST,
        Problem::CallEnded => StatusCode::CONFLICT,
        Problem::Refused { .. } => StatusCode::BAD_GATEWAY,
        Problem::Unreachable(_) => StatusCode::GATEWAY_TIMEOUT,
    };
    said(status, &json!({ "error": problem.to_string() }))
}

fn said(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}
