//! Answers that are no answers: a status and `{"error": "…"}`, with the `field` where it is one's.

use crate::model::WithCauses;
use axum::{
    Json,
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

/// A request that was refused or failed.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// The field of the body that is wrong.
    pub(super) field: Option<&'static str>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            field: None,
        }
    }

    /// The client's mistake.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The client's mistake, in this field of the body.
    pub(super) fn of_field(field: Option<&'static str>, message: impl Into<String>) -> Self {
        Self {
            field,
            ..Self::bad(message)
        }
    }

    /// Ours: the log has the causes, the client need not.
    pub(super) fn ours(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %WithCauses(error), "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the scheduler's files or registry could not be used; its log says why",
        )
    }
}

/// Why a request was refused or failed.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(super) struct ErrorAnswer {
    error: String,
    /// The field of the body that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorAnswer {
            error: self.message,
            field: self.field,
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, const { value("Bearer") });
        }
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            headers.insert(header::RETRY_AFTER, const { value("1") });
        }
        response
    }
}

impl From<ApiError> for Response {
    fn from(error: ApiError) -> Self {
        error.into_response()
    }
}

const fn value(text: &'static str) -> axum::http::HeaderValue {
    axum::http::HeaderValue::from_static(text)
}

/// A page for people, JSON for programs.
pub(super) async fn not_found(headers: HeaderMap) -> Response {
    let accepted = headers
        .get(header::ACCEPT)
        .and_then(|kinds| kinds.to_str().ok());
    if accepted.is_some_and(|kinds| kinds.contains("text/html")) {
        let page = Html(include_str!("assets/missing.html"));
        return (StatusCode::NOT_FOUND, page).into_response();
    }
    ApiError::new(StatusCode::NOT_FOUND, "there is nothing here").into_response()
}

pub(super) async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this address has no such method; /api/v1/openapi.json lists them",
    )
}

pub(super) fn too_many() -> Response {
    ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too many requests of this user or address; try again in a moment",
    )
    .into_response()
}

/// A whole answer to who has as many connections as one may.
pub(super) fn no_place() -> String {
    let body = json!({"error": "this user or address has as many connections as \
        scheduler.max_user_connections allows"});
    let body = body.to_string();
    format!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\nretry-after: 1\r\n\r\n{body}",
        body.len()
    )
}

/// Every connection says who is at its other end before its first request.
pub(super) fn nobody() -> Response {
    ApiError::new(StatusCode::FORBIDDEN, "it is not known who asks").into_response()
}

pub(super) fn too_slow() -> Response {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        "the request did not come in, or could not be answered, in time",
    )
    .into_response()
}
