//! The API's description, OpenAPI 3.1. Tests ask the server for everything that it describes.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

/// The document.
pub(super) const DOCUMENT: &str = include_str!("assets/openapi.json");

pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}
