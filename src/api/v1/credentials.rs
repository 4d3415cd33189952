//! Credentials on the wire. A value goes in and never out, also not as a part of what was wrong with it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::templates::precondition;
use crate::api::body;
use crate::api::error::Problem;
use crate::api::range::ETag;
use crate::api::route::{Call, Reply};
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::credential::CredentialError;
use crate::model::credential::{Credential, CredentialValue, Description};
use crate::model::name::Name;

/// What a credential shall be: `value` or `value_base64`, 1 byte to 64 KiB.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutCredential {
    /// The value, as text.
    #[serde(default, deserialize_with = "secret")]
    #[schemars(with = "Option<String>")]
    value: Option<Secret<String>>,
    /// The value, as any bytes: base64 with its padding (RFC 4648 section 4).
    #[serde(default, deserialize_with = "secret")]
    #[schemars(with = "Option<String>")]
    value_base64: Option<Secret<String>>,
    /// What it is for: one line of at most 512 bytes, which everybody in the team can read. As it was when absent.
    description: Option<String>,
}

/// A credential, without its value.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CredentialView {
    name: Name,
    /// Counts its values.
    version: u32,
    /// What it is for.
    description: String,
    /// When it was first set.
    made_at: Timestamp,
    /// By whom.
    made_by: String,
    /// When it got the value that it has.
    changed_at: Timestamp,
    /// By whom.
    changed_by: String,
    /// When casemated last used a value of it.
    used_at: Option<Timestamp>,
    /// For what.
    used_for: Option<String>,
}

/// The team's credentials, by name.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CredentialList {
    items: Vec<CredentialView>,
}

impl From<Credential> for CredentialView {
    fn from(credential: Credential) -> Self {
        let Credential {
            name,
            version,
            description,
            made_by,
            made_at,
            changed_by,
            changed_at,
            used_at,
            used_for,
        } = credential;
        Self {
            name,
            version,
            description,
            made_at,
            made_by,
            changed_at,
            changed_by,
            used_at,
            used_for,
        }
    }
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}

impl PutCredential {
    fn read(self) -> Result<(CredentialValue, Option<Description>), Problem> {
        let bytes = match (self.value, self.value_base64) {
            (Some(text), None) => text.expose().clone().into_bytes(),
            (None, Some(text)) => STANDARD.decode(text.expose()).map_err(|_| {
                // What the decoder says names a byte of it.
                Problem::bad_request("value_base64: not base64 with its padding (RFC 4648)")
            })?,
            (None, None) | (Some(_), Some(_)) => {
                return Err(Problem::bad_request("give either value or value_base64"));
            }
        };
        let invalid = |error| Problem::from(CredentialError::Invalid(error));
        let value = CredentialValue::new(bytes).map_err(invalid)?;
        let description = self.description.map(Description::new).transpose();
        Ok((value, description.map_err(invalid)?))
    }
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    body::query(call, &[])?;
    let credentials = call.app.credentials(call.principal()?).await?;
    let items = credentials.into_iter().map(CredentialView::from).collect();
    Ok(Reply::json(StatusCode::OK, &CredentialList { items }))
}

pub(crate) async fn put(call: &Call) -> Result<Reply, Problem> {
    let principal = call.principal()?;
    let name = name(call).map_err(|error| Problem::bad_request(format!("name: {error}")))?;
    let precondition = precondition(call)?;
    let wanted: PutCredential = body::secret_json(call, "value or value_base64, and description")?;
    let (value, description) = wanted.read()?;
    let (credential, is_new) = call
        .app
        .put_credential(principal, name, value, description, precondition)
        .await?;
    let tag = ETag::strong(credential.version.to_string().as_str())
        .map_err(|error| Problem::internal(error.to_string()))?;
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let reply = Reply::json(status, &CredentialView::from(credential));
    Ok(reply.with(header::ETAG, tag.value()))
}

pub(crate) async fn delete(call: &Call) -> Result<Reply, Problem> {
    let precondition = precondition(call)?;
    let name = name(call).map_err(|_| {
        // What cannot be a name names none.
        Problem::from(CredentialError::NotFound("of this name".to_owned()))
    })?;
    call.app
        .remove_credential(call.principal()?, name, precondition)
        .await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn name(call: &Call) -> Result<Name, crate::model::name::InvalidName> {
    call.path.get("name").map_or("", String::as_str).parse()
}
