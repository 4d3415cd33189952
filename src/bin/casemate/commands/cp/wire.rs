//! Files of a session as the HTTP API writes them, and the calls that both directions make.

use ::http::Method;
use casemate::base::clock::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::Copying;
use crate::failure::Failure;
use crate::http::Call;

/// The code of a file that is not there.
const ABSENT: &str = "file_not_found";

/// A file, as far as copying it goes.
#[derive(Deserialize)]
pub struct FileView {
    pub kind: Kind,
    pub size_bytes: u64,
    mode: String,
    pub modified_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    File,
    Directory,
    Symlink,
    #[serde(other)]
    Other,
}

impl FileView {
    /// Its permission bits, and no others.
    pub fn mode(&self) -> Result<u32, Failure> {
        let mode = u32::from_str_radix(&self.mode, 8).map_err(|_| Failure::mismatch())?;
        Ok(mode & 0o777)
    }
}

impl Copying<'_> {
    /// A call on what is at a path of the session.
    pub fn on(&self, method: Method, route: &str, path: &str, more: &[(&str, String)]) -> Call {
        let mut query = vec![("path", path.to_owned())];
        query.extend(self.user.clone().map(|user| ("user", user)));
        query.extend(more.iter().cloned());
        Call::ask(method, &format!("/v1/sessions/{}/{route}", self.id), &query)
    }

    /// What is at a path of the session, if anything.
    pub async fn look(&self, path: &str, follow: bool) -> Result<Option<FileView>, Failure> {
        let follow = [("follow", follow.to_string())];
        let call = self.on(Method::GET, "files/stat", path, &follow);
        let answer = self.client.find(call, ABSENT).await?;
        answer.map(|answer| self.client.read(&answer)).transpose()
    }

    /// Gives a file of the session another name, over what has it.
    pub async fn rename(&self, path: &str, to: &str) -> Result<(), Failure> {
        let mut body = json!({"path": path, "to": to, "overwrite": true, "parents": false});
        if let (Some(user), Some(fields)) = (&self.user, body.as_object_mut()) {
            fields.insert("user".to_owned(), user.as_str().into());
        }
        let route = format!("/v1/sessions/{}/files/move", self.id);
        let call = Call::new(Method::POST, route).json(body.to_string());
        self.client.call(call).await.map(drop)
    }

    /// Removes a file of the session.
    pub async fn remove(&self, path: &str) -> Result<(), Failure> {
        let call = self.on(Method::DELETE, "files", path, &[]);
        self.client.call(call).await.map(drop)
    }
}
