//! Who asks, as the scheduler sees them; and the token, for those who may have it.

use axum::{Extension, Json, extract::State, http::StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Shared, error::ApiError, rights::Rights};
use crate::sched::job::UserName;

/// What a client may offer its user.
#[derive(Serialize, JsonSchema)]
pub(super) struct WhoAmI {
    /// The user, where the kernel says who it is.
    username: Option<UserName>,
    /// Whether jobs can be submitted, and own ones be ended.
    may_submit: bool,
    /// Whether everybody's jobs can be ended.
    admin: bool,
    /// Whether everybody's results can be read.
    all_results: bool,
}

pub(super) async fn whoami(Extension(rights): Extension<Rights>) -> Json<WhoAmI> {
    Json(WhoAmI {
        may_submit: rights.may_submit(),
        admin: rights.all,
        all_results: rights.all_results,
        username: rights.user,
    })
}

#[derive(Serialize, JsonSchema)]
pub(super) struct TokenAnswer {
    token: String,
}

pub(super) async fn token(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
) -> Result<Json<TokenAnswer>, ApiError> {
    if !rights.all {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "the token is for root, the scheduler's user and members of scheduler.admin_group",
        ));
    }
    let token = site.guard.token().text();
    Ok(Json(TokenAnswer { token }))
}
