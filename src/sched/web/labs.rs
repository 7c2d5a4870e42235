//! The labs: what there is, and one of them with its routers and segments.

use axum::{Json, extract::State, http::StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Shared, Site, api::blocking, ask::Name, error::ApiError};
use crate::{
    lab::{self, LabError, LabPhase, LabState, LabStatus},
    model::{IfName, LabName, RouterName},
};

/// A lab in the list of labs.
#[derive(Serialize, JsonSchema)]
pub(super) struct LabEntry {
    lab: LabName,
    phase: LabPhase,
    created_at: String,
    routers: usize,
}

/// A lab as it is drawn.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Lab")]
pub(super) struct LabAnswer {
    lab: LabName,
    phase: LabPhase,
    created_at: String,
    /// Namespaces that are gone.
    missing: Vec<String>,
    /// What of its routers and facts is not as it was made, a sentence each, with what to do.
    drift: Vec<String>,
    routers: Vec<RouterAnswer>,
    segments: Vec<SegmentAnswer>,
    warnings: Vec<WarningAnswer>,
}

#[derive(Serialize, JsonSchema)]
struct RouterAnswer {
    name: RouterName,
    ruleset_incomplete: bool,
    interfaces: Vec<InterfaceAnswer>,
}

#[derive(Serialize, JsonSchema)]
struct InterfaceAnswer {
    name: IfName,
    up: bool,
    addresses: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
struct SegmentAnswer {
    name: String,
    members: Vec<MemberAnswer>,
}

#[derive(Serialize, JsonSchema)]
struct MemberAnswer {
    router: RouterName,
    interface: IfName,
}

#[derive(Serialize, JsonSchema)]
struct WarningAnswer {
    r#where: String,
    message: String,
}

pub(super) async fn list(State(site): State<Shared>) -> Result<Json<Vec<LabEntry>>, ApiError> {
    blocking(&site, |site| {
        let labs = lab::list(&site.config).map_err(|e| ApiError::ours(&e))?;
        let entry = |state: LabState| LabEntry {
            routers: state.routers.len(),
            lab: state.lab,
            phase: state.phase,
            created_at: state.created_at,
        };
        Ok(Json(labs.into_iter().map(entry).collect()))
    })
    .await
}

/// The labs as their files have them, as `tsim lab list` shows them.
pub(super) async fn states(State(site): State<Shared>) -> Result<Json<Vec<LabState>>, ApiError> {
    blocking(&site, |site| {
        let labs = lab::list(&site.config).map_err(|e| ApiError::ours(&e))?;
        Ok(Json(labs))
    })
    .await
}

/// One of them, as `tsim lab status` shows it.
pub(super) async fn state(
    State(site): State<Shared>,
    Name(name): Name,
) -> Result<Json<LabStatus>, ApiError> {
    status(&site, name).await.map(Json)
}

pub(super) async fn one(
    State(site): State<Shared>,
    Name(name): Name,
) -> Result<Json<LabAnswer>, ApiError> {
    status(&site, name).await.map(answer).map(Json)
}

async fn status(site: &Shared, name: String) -> Result<LabStatus, ApiError> {
    let none = |e: String| ApiError::new(StatusCode::NOT_FOUND, e);
    let name = LabName::new(name).map_err(|e| none(e.to_string()))?;
    let look = move |site: &Site| match lab::status(&site.config, &name) {
        Err(LabError::NotFound { .. }) => Err(none(format!("there is no lab {name}"))),
        status => status.map_err(|error| ApiError::ours(&error)),
    };
    blocking(site, look).await
}

fn answer(status: LabStatus) -> LabAnswer {
    let drift = status.drift_text();
    let LabStatus { state, missing, .. } = status;
    let interfaces = |router: &lab::RouterState| {
        let own = router
            .interfaces
            .iter()
            .filter(|port| port.name.as_str() != "lo");
        own.map(|port| InterfaceAnswer {
            name: port.name.clone(),
            up: port.up,
            addresses: port.addresses.iter().map(|a| a.local.to_string()).collect(),
        })
        .collect()
    };
    let members = |segment: &lab::topology::Segment| {
        let ends = segment.members.iter().cloned();
        ends.map(|(router, interface)| MemberAnswer { router, interface })
            .collect()
    };
    LabAnswer {
        missing: missing.iter().map(ToString::to_string).collect(),
        drift,
        routers: state
            .routers
            .iter()
            .map(|router| RouterAnswer {
                name: router.name.clone(),
                ruleset_incomplete: router.ruleset_incomplete,
                interfaces: interfaces(router),
            })
            .collect(),
        segments: state
            .segments
            .iter()
            .map(|segment| SegmentAnswer {
                name: segment.name.clone(),
                members: members(segment),
            })
            .collect(),
        warnings: state
            .warnings
            .iter()
            .map(|warning| WarningAnswer {
                r#where: warning.origin.to_string(),
                message: warning.message.clone(),
            })
            .collect(),
        lab: state.lab,
        phase: state.phase,
        created_at: state.created_at,
    }
}
