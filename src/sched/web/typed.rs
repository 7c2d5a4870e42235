//! What the types of a handler say of its operation: the parts of a request that it takes, the answer
//! that it returns, and the schemas of both.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::Response,
};
use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema,
    transform::transform_subschemas,
};
use serde_json::{Map, Value, json};

use super::{
    Shared,
    ask::{Body, Name, UrlQuery},
    error::ApiError,
};

/// A parameter that may be left out.
pub(super) fn parameter(place: &str, name: &str, schema: &Value) -> Value {
    json!({"name": name, "in": place, "schema": schema})
}

/// What the types of a handler say.
pub(super) struct Types {
    /// Schemas of what is answered.
    pub(super) answers: SchemaGenerator,
    /// Schemas of what is asked.
    pub(super) questions: SchemaGenerator,
    /// The parameters behind the `?` of the operation at hand.
    pub(super) query: Vec<Value>,
    /// The same of its body and answer, where they have types.
    pub(super) body: Option<Value>,
    pub(super) answer: Option<Schema>,
}

impl Types {
    pub(super) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
        });
        let settings = settings.with_transform(fold_words);
        let answers = settings.clone().for_serialize().with_transform(close);
        Self {
            answers: answers.into_generator(),
            questions: settings.into_generator(),
            query: Vec::new(),
            body: None,
            answer: None,
        }
    }

    /// All schemas that were referred to. What is asked and answered is the same where both have it.
    pub(super) fn schemas(mut self) -> Map<String, Value> {
        let mut schemas = self.questions.take_definitions(true);
        schemas.extend(self.answers.take_definitions(true));
        schemas
    }
}

/// A handler, of whose types the document is made; `T` are those of its arguments.
pub(super) trait Described<T> {
    /// Adds them.
    fn describe(types: &mut Types);
}

macro_rules! described {
    ($($part:ident)*) => {
        impl<H, F, R, $($part,)*> Described<($($part,)*)> for H
        where
            H: Fn($($part),*) -> F,
            F: Future<Output = R>,
            R: Answered,
            $($part: Asked,)*
        {
            fn describe(types: &mut Types) {
                $($part::describe(types);)*
                R::describe(types);
            }
        }
    };
}

described!();
described!(A);
described!(A B);
described!(A B C);
described!(A B C D);

/// A part of a request that a handler takes.
pub(super) trait Asked {
    /// What it says of the operation: nothing unless it is a query or body.
    fn describe(_: &mut Types) {}
}

impl Asked for State<Shared> {}
impl<T> Asked for Extension<T> {}
impl Asked for HeaderMap {}
impl Asked for Name {}
impl<T> Asked for Path<T> {}

impl<T: JsonSchema> Asked for UrlQuery<T> {
    fn describe(types: &mut Types) {
        let mut schema = T::json_schema(&mut types.questions);
        let required = required(&schema);
        let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
        for (name, schema) in properties.into_iter().flatten() {
            never_null(schema);
            let mut query = parameter("query", name, schema);
            if let Some(text) = query["schema"]
                .as_object_mut()
                .and_then(|s| s.shift_remove("description"))
            {
                query["description"] = text;
            }
            if required.contains(name) {
                query["required"] = true.into();
            }
            types.query.push(query);
        }
    }
}

impl<T: JsonSchema> Asked for Body<T> {
    fn describe(types: &mut Types) {
        let schema = types.questions.subschema_for::<T>();
        let content = json!({"application/json": {"schema": schema}});
        types.body = Some(json!({"required": true, "content": content}));
    }
}

/// What a handler returns.
pub(super) trait Answered {
    /// Its type, where it has one: the table says what else it is.
    fn describe(_: &mut Types) {}
}

impl Answered for Response {}

impl<T: JsonSchema> Answered for Json<T> {
    fn describe(types: &mut Types) {
        types.answer = Some(types.answers.subschema_for::<T>());
    }
}

impl<T: JsonSchema> Answered for (StatusCode, Json<T>) {
    fn describe(types: &mut Types) {
        Json::<T>::describe(types);
    }
}

impl<T: JsonSchema> Answered for (StatusCode, [(HeaderName, HeaderValue); 1], Json<T>) {
    fn describe(types: &mut Types) {
        Json::<T>::describe(types);
    }
}

impl<T: Answered> Answered for Result<T, ApiError> {
    fn describe(types: &mut Types) {
        T::describe(types);
    }
}

/// What we answer has no fields but those that are described, unless its type keeps those of other
/// programs; and a field that may be left out is left out rather than null.
fn close(schema: &mut Schema) {
    let required = required(schema);
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for (name, property) in properties {
            if !required.contains(name) {
                never_null(property);
            }
        }
        let fields = schema.ensure_object();
        fields.entry("additionalProperties").or_insert(false.into());
    }
    transform_subschemas(&mut close, schema);
}

fn required(schema: &Schema) -> Vec<String> {
    let names = schema.get("required").and_then(Value::as_array);
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

/// Takes the kind `null` out of a schema that is one of several.
fn never_null(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else {
        return;
    };
    if let Some(Value::Array(kinds)) = schema.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [one] = kinds.as_slice() {
            schema["type"] = one.clone();
        }
    }
    if let Some(Value::Array(kinds)) = schema.get_mut("anyOf") {
        kinds.retain(|kind| kind["type"] != "null");
        if let [Value::Object(one)] = kinds.as_slice() {
            let one = one.clone();
            schema.shift_remove("anyOf");
            schema.extend(one);
        }
    }
}

/// Makes an `enum` of words that are each described, which programs understand more often, and puts
/// what they mean into the description.
fn fold_words(schema: &mut Schema) {
    let kinds = schema.get("oneOf").and_then(Value::as_array);
    let word = |kind: &Value| kind.get("const").filter(|word| word.is_string()).cloned();
    let words = kinds.and_then(|kinds| kinds.iter().map(word).collect::<Option<Vec<Value>>>());
    if let (Some(kinds), Some(words)) = (kinds, words) {
        let about = schema.get("description").and_then(Value::as_str);
        let mut about = about.unwrap_or_default().to_owned();
        for (kind, word) in kinds.iter().zip(&words) {
            let meaning = kind["description"].as_str().unwrap_or_default();
            about += &format!("\n- `{}`: {meaning}", word.as_str().unwrap_or_default());
        }
        *schema = json_schema!({"description": about, "type": "string", "enum": words});
    }
    transform_subschemas(&mut fold_words, schema);
}
