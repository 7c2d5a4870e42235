//! `POST /api/v1/jobs`: a job as it is submitted.

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Shared, Site, api::blocking, ask::Body, error::ApiError, rights::Rights};
use crate::{
    bulk::policy::PolicyText,
    model::RunId,
    sched::{
        admission,
        job::{Mode, NewJob, Params, UserName, fresh_run_id},
        options::JobOptions,
        queue::{QueueLimits, SubmitError, Submitted},
    },
};

pub(super) async fn submit(
    State(site): State<Shared>,
    Extension(rights): Extension<Rights>,
    Body(fields): Body<Fields>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<Submitted>), ApiError> {
    let submission = Submission::read(fields, &rights)?;
    let submitted = blocking(&site, |site| enqueue(site, submission)).await?;
    let status = if submitted.new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let location = HeaderValue::try_from(format!("/api/v1/jobs/{}", submitted.run_id));
    let location = location.map_err(|e| ApiError::ours(&e))?;
    Ok((status, [(header::LOCATION, location)], Json(submitted)))
}

/// Quick and detailed jobs need source, destination and ports, a check needs policy and none of them. A
/// matrix needs ports, and source and destination or networks. A diff needs before, and policy or what a
/// matrix needs. Routers are for quick and detailed jobs.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Submission {
    mode: Mode,
    run_id: Option<RunId>,
    /// Needed by TCP; by the socket it is the caller, and another only for administrators. Any printable
    /// text; escape it where it is shown.
    #[schemars(with = "Option<UserName>")]
    username: UserName,
    #[schemars(flatten)]
    params: Params,
    policy: Option<PolicyText>,
}

impl Submission {
    /// Takes the fields out one by one, so that what is wrong is said of its field.
    fn read(mut fields: Fields, rights: &Rights) -> Result<Self, ApiError> {
        let submission = Self {
            mode: fields.needed("mode")?,
            run_id: fields.take("run_id")?,
            username: rights.name(fields.take("username")?)?,
            params: Params {
                lab: fields.needed("lab")?,
                before: fields.take("before")?,
                source: fields.take("source")?,
                destination: fields.take("destination")?,
                networks: fields.take("networks")?.unwrap_or_default(),
                ports: fields.take("ports")?,
                policy: None,
                routers: fields.take("routers")?,
                options: JobOptions {
                    from: fields.take("from")?,
                    trust_facts: fields.take("trust_facts")?.unwrap_or_default(),
                    default_proto: fields.take("default_proto")?,
                    sport: fields.take("sport")?,
                    lock_timeout: fields.take("lock_timeout")?,
                    trace: fields.take("trace")?,
                    explain: fields.take("explain")?,
                    backend: fields.take("backend")?,
                    probe_dscp: fields.take("probe_dscp")?,
                    timeout: fields.take("timeout")?,
                    patient: fields.take("patient")?.unwrap_or_default(),
                },
                extra: Map::new(),
            },
            policy: fields.take("policy")?,
        };
        fields.end()?;
        Ok(submission)
    }
}

/// The fields of a body that nobody has taken yet.
#[derive(Deserialize, JsonSchema)]
#[schemars(with = "Submission", rename = "Submission", description = "")]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// A field that may be left out, or be null.
    fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|e| ApiError::of_field(Some(name), format!("{name}: {e}"))),
        }
    }

    fn needed<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T, ApiError> {
        let missing = || ApiError::of_field(Some(name), format!("{name} is missing"));
        self.take(name)?.ok_or_else(missing)
    }

    fn end(self) -> Result<(), ApiError> {
        self.0.keys().next().map_or(Ok(()), |name| {
            Err(ApiError::bad(format!(
                "there is no field {name:?}; /api/v1/openapi.json lists them"
            )))
        })
    }
}

fn enqueue(site: &Site, submission: Submission) -> Result<Submitted, ApiError> {
    let now = Timestamp::now();
    let mut params = submission.params;
    let policy = submission.policy;
    let admitted = admission::with_policy(&mut params, policy.as_ref(), &site.config);
    let checked = admitted.and_then(|()| admission::check(&params, submission.mode, &site.config));
    checked.map_err(|error| {
        if error.is_asked_wrong() {
            ApiError::of_field(error.field(&params), error.to_string())
        } else {
            ApiError::ours(&error)
        }
    })?;
    let run_id = match submission.run_id {
        Some(run_id) => run_id,
        None => fresh_run_id(submission.mode, now).map_err(|e| ApiError::ours(&e))?,
    };
    let job = NewJob {
        run_id,
        username: submission.username,
        mode: submission.mode,
        params,
        policy,
    };
    let most = QueueLimits::of(&site.config);
    site.spool
        .lock()?
        .submit(job, most, now)
        .map_err(|error| match error {
            SubmitError::Taken { .. } => ApiError {
                field: Some("run_id"),
                ..ApiError::new(StatusCode::CONFLICT, error.to_string())
            },
            SubmitError::Full(_) => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            SubmitError::UserFull { .. } | SubmitError::UserSpent { .. } => {
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
            }
            SubmitError::Spool(error) => error.into(),
        })
}
