//! The API's description, OpenAPI 3.1, made of a table of operations and of the types that their
//! handlers take and answer. Tests ask the server for everything that it describes.

use std::mem;

use axum::{
    extract::DefaultBodyLimit,
    handler::Handler,
    routing::{self, MethodRouter},
};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::{
    Shared,
    error::ErrorAnswer,
    typed::{Described, Types, parameter},
};
use crate::model::{LabName, RunId};

/// What is said of the whole.
const ABOUT: &str = "The queue of quick and detailed jobs, live, by TCP and by the unix socket \
    `scheduler.socket`. By the socket users of the machine are known, and may do what is theirs: submit \
    jobs, end their own, read their own results; root and `scheduler.admin_group` all. By TCP reading the \
    queue and labs needs no token on loopback; every change, and results unless `scheduler.share_results` is \
    set, need `Authorization: Bearer TOKEN`, as `tsim token` prints it. Requests from pages of other sites \
    are refused. Answers that are errors are `{\"error\": \"...\"}`, with `field` where one field of the body \
    is wrong.";

/// The errors that operations share: status, name, meaning.
const ERRORS: [(u16, &str, &str); 10] = [
    (
        400,
        "BadRequest",
        "The request is wrong; the text says where.",
    ),
    (401, "Unauthorized", "The token is missing or wrong."),
    (
        403,
        "Forbidden",
        "From another site's page, or somebody else's job.",
    ),
    (404, "NotFound", "There is no such thing."),
    (409, "Conflict", "The run id is taken, or the job is over."),
    (413, "TooLarge", "The body is too large."),
    (415, "NotJson", "The body is not JSON."),
    (421, "Misdirected", "The server is not called by that name."),
    (
        429,
        "TooMany",
        "Too many requests, or too much queued, of this user or address.",
    ),
    (
        503,
        "Busy",
        "The queue is full or in use, or too many viewers watch.",
    ),
];

/// One operation: how it is served, and what is said of it beside what its handler's types say.
pub(super) struct Operation {
    pub(super) path: &'static str,
    pub(super) serve: MethodRouter<Shared>,
    method: &'static str,
    id: &'static str,
    summary: &'static str,
    about: Option<&'static str>,
    header: Option<&'static str>,
    /// Statuses that are no errors, with their meaning; 200 unless there are others.
    answers: Vec<(u16, &'static str)>,
    /// What an answer is that has no type of ours.
    kind: &'static str,
    /// Whether it asks for no rights.
    for_everybody: bool,
    /// The errors that not all operations of its kind have.
    refuses: &'static [u16],
    types: Vec<fn(&mut Types)>,
}

/// `GET` of a path.
pub(super) fn get<H, T, U>(path: &'static str, id: &'static str, handler: H) -> Operation
where
    H: Handler<T, Shared> + Described<U>,
    T: 'static,
{
    Operation::new("get", path, id, routing::get(handler), H::describe)
}

/// `POST` to a path, which changes something.
pub(super) fn post<H, T, U>(path: &'static str, id: &'static str, handler: H) -> Operation
where
    H: Handler<T, Shared> + Described<U>,
    T: 'static,
{
    Operation::new("post", path, id, routing::post(handler), H::describe)
}

impl Operation {
    fn new(
        method: &'static str,
        path: &'static str,
        id: &'static str,
        serve: MethodRouter<Shared>,
        types: fn(&mut Types),
    ) -> Self {
        Self {
            path,
            serve,
            method,
            id,
            summary: "",
            about: None,
            header: None,
            answers: Vec::new(),
            kind: "",
            for_everybody: false,
            refuses: &[],
            types: vec![types],
        }
    }

    pub(super) fn summary(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    /// More than the summary says.
    pub(super) fn about(self, about: &'static str) -> Self {
        let about = Some(about);
        Self { about, ..self }
    }

    /// A header that may come with it.
    pub(super) fn takes_header(self, name: &'static str) -> Self {
        let header = Some(name);
        Self { header, ..self }
    }

    /// Takes longer bodies than others.
    pub(super) fn takes_body_of(self, bytes: usize) -> Self {
        let serve = self.serve.layer(DefaultBodyLimit::max(bytes));
        Self { serve, ..self }
    }

    /// What an answer with this status means.
    pub(super) fn answers(mut self, status: u16, meaning: &'static str) -> Self {
        self.answers.push((status, meaning));
        self
    }

    /// The kind of an answer that has no type of ours.
    pub(super) fn answers_with(self, kind: &'static str, meaning: &'static str) -> Self {
        Self { kind, ..self }.answers(200, meaning)
    }

    /// A type that its words name.
    pub(super) fn mentions<T: JsonSchema>(mut self) -> Self {
        self.types
            .push(|types| _ = types.answers.subschema_for::<T>());
        self
    }

    /// Needs no token, shows nothing that is anybody's.
    pub(super) fn for_everybody(self) -> Self {
        let for_everybody = true;
        Self {
            for_everybody,
            ..self
        }
    }

    /// Errors that other operations do not have.
    pub(super) fn refuses(self, refuses: &'static [u16]) -> Self {
        Self { refuses, ..self }
    }

    fn describe(&self, types: &mut Types) -> Value {
        for describe in &self.types {
            describe(types);
        }
        let (query, body) = (mem::take(&mut types.query), types.body.take());
        let responses = self.responses(types.answer.take(), !query.is_empty(), body.is_some());
        let mut parameters = self.in_path(types);
        let header = |name| parameter("header", name, &json!({"type": "string"}));
        parameters.extend(self.header.map(header));
        parameters.extend(query);
        let security = match (self.for_everybody, self.method) {
            (true, _) => Some(json!([])),
            (false, "get") => None,
            _ => Some(json!([{"token": []}])),
        };
        let fields = [
            ("operationId", Some(self.id.into())),
            ("summary", Some(self.summary.into())),
            ("description", self.about.map(Value::from)),
            ("security", security),
            (
                "parameters",
                (!parameters.is_empty()).then(|| parameters.into()),
            ),
            ("requestBody", body),
            ("responses", Some(responses)),
        ];
        let fields = fields.into_iter();
        fields
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// What may come, by status; each error is described once for all operations.
    fn responses(&self, answer: Option<Schema>, has_query: bool, has_body: bool) -> Value {
        let content = match (answer, self.kind) {
            (Some(schema), _) => json!({"application/json": {"schema": schema}}),
            (None, "application/json") => json!({self.kind: {"schema": {"type": "object"}}}),
            (None, kind) => json!({kind: {"schema": {"type": "string"}}}),
        };
        let answers = match self.answers.as_slice() {
            [] => &[(200, self.summary)],
            answers => answers,
        };
        let answers = answers.iter().map(|(status, meaning)| {
            let answer = json!({"description": meaning, "content": content});
            (status.to_string(), answer)
        });
        let errors = ERRORS.iter().filter(|(status, ..)| match status {
            400 => has_query || has_body,
            401 | 403 => !self.for_everybody,
            404 => self.path.contains('{'),
            413 | 415 => has_body,
            421 | 429 => true,
            own => self.refuses.contains(own),
        });
        let errors = errors.map(|(status, name, _)| {
            let error = json!({"$ref": format!("#/components/responses/{name}")});
            (status.to_string(), error)
        });
        answers.chain(errors).collect()
    }

    fn in_path(&self, types: &mut Types) -> Vec<Value> {
        let names = self
            .path
            .split('{')
            .filter_map(|part| Some(part.split_once('}')?.0));
        let path = names.map(|name| {
            let schema = match name {
                "lab" => types.questions.subschema_for::<LabName>(),
                _ => types.questions.subschema_for::<RunId>(),
            };
            let mut path = parameter("path", name, schema.as_value());
            path["required"] = true.into();
            path
        });
        path.collect()
    }
}

/// The document.
pub(super) fn describe(operations: Vec<Operation>) -> Value {
    let mut types = Types::new();
    let mut paths = Map::new();
    for operation in operations {
        let described = operation.describe(&mut types);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described;
    }
    let error = types.answers.subschema_for::<ErrorAnswer>();
    let content = json!({"application/json": {"schema": error}});
    let responses = ERRORS.iter().map(|(_, name, meaning)| {
        let response = json!({"description": meaning, "content": content});
        ((*name).to_owned(), response)
    });
    let responses: Map<String, Value> = responses.collect();
    let license = "MIT OR Apache-2.0";
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tsim scheduler",
            "version": "1",
            "description": ABOUT,
            "license": {"name": license, "identifier": license},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "The content of scheduler.token_file; `tsim token` prints it.",
            }},
            "responses": responses,
            "schemas": types.schemas(),
        },
    })
}
