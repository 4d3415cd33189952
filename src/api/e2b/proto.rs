//! The messages of E2B's two services inside a sandbox, `process.Process` and `filesystem.Filesystem`: binary protobuf and its JSON (proto3).
//!
//! Numbers and names are those of E2B's published definitions; a field that is not known is skipped, as both encodings want it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Message, Oneof};
use serde::{Deserialize, Serialize};

/// Bytes are base64 in JSON, in any of its spellings.
mod base64_bytes {
    use base64::Engine;
    use base64::alphabet;
    use base64::engine::general_purpose::STANDARD;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    const ANY: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const PLAIN: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY);
    const URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY);

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        let decoded = PLAIN.decode(&text).or_else(|_| URL.decode(&text));
        decoded
            .map(Bytes::from)
            .map_err(|_| serde::de::Error::custom("not base64"))
    }
}

/// 64-bit numbers are text in JSON.
mod text_number {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    pub(super) fn serialize<S: Serializer>(number: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<i64, D::Error> {
        match Either::deserialize(from)? {
            Either::Number(number) => Ok(number),
            Either::Text(text) => text
                .parse()
                .map_err(|_| serde::de::Error::custom("not a number")),
        }
    }
}

/// Values of an enumeration are names in JSON, and numbers where they have none.
macro_rules! names_in_json {
    ($module:ident, $kind:ty) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            #[derive(Deserialize)]
            #[serde(untagged)]
            enum Either {
                Number(i32),
                Name($kind),
            }

            pub(super) fn serialize<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
                match <$kind>::try_from(*value) {
                    Ok(known) => known.serialize(to),
                    Err(_) => to.serialize_i32(*value),
                }
            }

            pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<i32, D::Error> {
                Ok(match Either::deserialize(from)? {
                    Either::Number(number) => number,
                    Either::Name(known) => known.into(),
                })
            }
        }
    };
}

names_in_json!(signal_name, super::Signal);
names_in_json!(file_type_name, super::FileType);
names_in_json!(event_type_name, super::EventType);

macro_rules! message {
    ($(#[$about:meta])* $name:ident { $($(#[$meta:meta])* $field:ident : $kind:ty),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(in crate::api) struct $name { $($(#[$meta])* pub(in crate::api) $field: $kind),* }
    };
}

// --- process.Process ---

message!(/// Nothing.
    Empty {});

message!(/// What to run.
ProcessConfig {
    #[prost(string, tag = "1")]
    cmd: String,
    #[prost(string, repeated, tag = "2")]
    args: Vec<String>,
    #[prost(btree_map = "string, string", tag = "3")]
    envs: BTreeMap<String, String>,
    #[prost(string, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
});

message!(/// A terminal.
Pty {
    #[prost(message, optional, tag = "1")]
    size: Option<Size>,
});

message!(/// Of a terminal, in characters.
Size {
    #[prost(uint32, tag = "1")]
    cols: u32,
    #[prost(uint32, tag = "2")]
    rows: u32,
});

message!(/// A process to start.
StartRequest {
    #[prost(message, optional, tag = "1")]
    process: Option<ProcessConfig>,
    #[prost(message, optional, tag = "2")]
    pty: Option<Pty>,
    #[prost(string, optional, tag = "3")]
    tag: Option<String>,
    #[prost(bool, optional, tag = "4")]
    stdin: Option<bool>,
});

message!(/// A process to do something with.
OneProcess {
    #[prost(message, optional, tag = "1")]
    process: Option<ProcessSelector>,
});

message!(/// Which process.
ProcessSelector {
    #[prost(oneof = "Selected", tags = "1, 2")]
    #[serde(flatten)]
    selector: Option<Selected>,
});

/// By what a process is known.
#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) enum Selected {
    #[prost(uint32, tag = "1")]
    Pid(u32),
    #[prost(string, tag = "2")]
    Tag(String),
}

message!(/// An event of a process, as `Start` and `Connect` answer with.
ProcessResponse {
    #[prost(message, optional, tag = "1")]
    event: Option<ProcessEvent>,
});

message!(/// What a process did.
ProcessEvent {
    #[prost(oneof = "ProcessSaid", tags = "1, 2, 3, 4")]
    #[serde(flatten)]
    event: Option<ProcessSaid>,
});

/// What a process did.
#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) enum ProcessSaid {
    #[prost(message, tag = "1")]
    Start(StartEvent),
    #[prost(message, tag = "2")]
    Data(DataEvent),
    #[prost(message, tag = "3")]
    End(EndEvent),
    #[prost(message, tag = "4")]
    Keepalive(Empty),
}

message!(/// It runs.
StartEvent {
    #[prost(uint32, tag = "1")]
    pid: u32,
});

message!(/// It wrote something.
DataEvent {
    #[prost(oneof = "Output", tags = "1, 2, 3")]
    #[serde(flatten)]
    output: Option<Output>,
});

/// Where it wrote to.
#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) enum Output {
    #[prost(bytes = "bytes", tag = "1")]
    Stdout(#[serde(with = "base64_bytes")] Bytes),
    #[prost(bytes = "bytes", tag = "2")]
    Stderr(#[serde(with = "base64_bytes")] Bytes),
    #[prost(bytes = "bytes", tag = "3")]
    Pty(#[serde(with = "base64_bytes")] Bytes),
}

message!(/// It ended.
EndEvent {
    #[prost(sint32, tag = "1")]
    exit_code: i32,
    #[prost(bool, tag = "2")]
    exited: bool,
    #[prost(string, tag = "3")]
    status: String,
    #[prost(string, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
});

message!(/// The processes that run.
ListResponse {
    #[prost(message, repeated, tag = "1")]
    processes: Vec<ProcessInfo>,
});

message!(/// A process that runs.
ProcessInfo {
    #[prost(message, optional, tag = "1")]
    config: Option<ProcessConfig>,
    #[prost(uint32, tag = "2")]
    pid: u32,
    #[prost(string, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
});

message!(/// Another size for a terminal.
UpdateRequest {
    #[prost(message, optional, tag = "1")]
    process: Option<ProcessSelector>,
    #[prost(message, optional, tag = "2")]
    pty: Option<Pty>,
});

message!(/// Something for a process to read.
SendInputRequest {
    #[prost(message, optional, tag = "1")]
    process: Option<ProcessSelector>,
    #[prost(message, optional, tag = "2")]
    input: Option<ProcessInput>,
});

message!(/// What a process shall read.
ProcessInput {
    #[prost(oneof = "Input", tags = "1, 2")]
    #[serde(flatten)]
    input: Option<Input>,
});

/// Where it reads it.
#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) enum Input {
    #[prost(bytes = "bytes", tag = "1")]
    Stdin(#[serde(with = "base64_bytes")] Bytes),
    #[prost(bytes = "bytes", tag = "2")]
    Pty(#[serde(with = "base64_bytes")] Bytes),
}

message!(/// A part of a stream of input.
StreamInputRequest {
    #[prost(oneof = "InputEvent", tags = "1, 2, 3")]
    #[serde(flatten)]
    event: Option<InputEvent>,
});

/// A part of a stream of input: first which process, then what it shall read.
#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) enum InputEvent {
    #[prost(message, tag = "1")]
    Start(OneProcess),
    #[prost(message, tag = "2")]
    Data(InputData),
    #[prost(message, tag = "3")]
    Keepalive(Empty),
}

message!(/// What a process shall read.
InputData {
    #[prost(message, optional, tag = "2")]
    input: Option<ProcessInput>,
});

message!(/// A signal for a process.
SendSignalRequest {
    #[prost(message, optional, tag = "1")]
    process: Option<ProcessSelector>,
    #[prost(enumeration = "Signal", tag = "2")]
    #[serde(with = "signal_name")]
    signal: i32,
});

/// The signals that can be sent.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    prost::Enumeration,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(i32)]
#[expect(
    clippy::enum_variant_names,
    reason = "their names on the wire begin so"
)]
pub(in crate::api) enum Signal {
    SignalUnspecified = 0,
    SignalSigterm = 15,
    SignalSigkill = 9,
}

// --- filesystem.Filesystem ---

message!(/// A path.
PathRequest {
    #[prost(string, tag = "1")]
    path: String,
});

message!(/// A file to give another name.
MoveRequest {
    #[prost(string, tag = "1")]
    source: String,
    #[prost(string, tag = "2")]
    destination: String,
});

message!(/// A file.
EntryResponse {
    #[prost(message, optional, tag = "1")]
    entry: Option<EntryInfo>,
});

message!(/// What is known of a file.
EntryInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(enumeration = "FileType", tag = "2")]
    #[serde(with = "file_type_name")]
    r#type: i32,
    #[prost(string, tag = "3")]
    path: String,
    #[prost(int64, tag = "4")]
    #[serde(with = "text_number")]
    size: i64,
    #[prost(uint32, tag = "5")]
    mode: u32,
    #[prost(string, tag = "6")]
    permissions: String,
    #[prost(string, tag = "7")]
    owner: String,
    #[prost(string, tag = "8")]
    group: String,
    #[prost(message, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_time: Option<Time>,
    #[prost(string, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
    #[prost(btree_map = "string, string", tag = "11")]
    metadata: BTreeMap<String, String>,
    #[prost(bool, tag = "12")]
    is_symlink: bool,
});

/// A time: `google.protobuf.Timestamp`, which is RFC 3339 in JSON.
#[derive(Clone, PartialEq, Message)]
pub(in crate::api) struct Time {
    #[prost(int64, tag = "1")]
    pub(in crate::api) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(in crate::api) nanos: i32,
}

impl Time {
    /// Milliseconds since 1970.
    pub(in crate::api) fn from_millis(millis: i64) -> Self {
        let nanos = millis.rem_euclid(1000) * 1_000_000;
        Self {
            seconds: millis.div_euclid(1000),
            nanos: i32::try_from(nanos).unwrap_or(0),
        }
    }

    fn at(&self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::new(self.seconds, self.nanos).ok()
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let at = self
            .at()
            .ok_or_else(|| serde::ser::Error::custom("no such time"))?;
        to.collect_str(&at)
    }
}

impl<'a> Deserialize<'a> for Time {
    fn deserialize<D: serde::Deserializer<'a>>(from: D) -> Result<Self, D::Error> {
        let at = jiff::Timestamp::deserialize(from)?;
        Ok(Self {
            seconds: at.as_second(),
            nanos: at.subsec_nanosecond(),
        })
    }
}

/// What a file is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    prost::Enumeration,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(i32)]
#[expect(
    clippy::enum_variant_names,
    reason = "their names on the wire begin so"
)]
pub(in crate::api) enum FileType {
    FileTypeUnspecified = 0,
    FileTypeFile = 1,
    FileTypeDirectory = 2,
    FileTypeSymlink = 3,
}

message!(/// A directory to list.
ListDirRequest {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(uint32, tag = "2")]
    depth: u32,
});

message!(/// What is in a directory.
ListDirResponse {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<EntryInfo>,
});

message!(/// A directory to watch.
WatchRequest {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bool, tag = "2")]
    recursive: bool,
    #[prost(bool, tag = "3")]
    include_entry: bool,
    #[prost(bool, tag = "4")]
    allow_network_mounts: bool,
});

message!(/// Something in a stream of what happens to files.
WatchDirResponse {
    #[prost(oneof = "Watched", tags = "1, 2, 3")]
    #[serde(flatten)]
    event: Option<Watched>,
});

/// Something in a stream of what happens to files.
#[derive(Clone, PartialEq, Oneof, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on its way out")]
#[serde(rename_all = "camelCase")]
pub(in crate::api) enum Watched {
    #[prost(message, tag = "1")]
    Start(Empty),
    #[prost(message, tag = "2")]
    Filesystem(FilesystemEvent),
    #[prost(message, tag = "3")]
    Keepalive(Empty),
}

message!(/// What happened to a file.
FilesystemEvent {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(enumeration = "EventType", tag = "2")]
    #[serde(with = "event_type_name")]
    r#type: i32,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<EntryInfo>,
});

/// What happened to a file.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    prost::Enumeration,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(i32)]
#[expect(
    clippy::enum_variant_names,
    reason = "their names on the wire begin so"
)]
pub(in crate::api) enum EventType {
    EventTypeUnspecified = 0,
    EventTypeCreate = 1,
    EventTypeWrite = 2,
    EventTypeRemove = 3,
    EventTypeRename = 4,
    EventTypeChmod = 5,
}

message!(/// A watcher.
OneWatcher {
    #[prost(string, tag = "1")]
    watcher_id: String,
});

message!(/// What happened since the last look.
GetWatcherEventsResponse {
    #[prost(message, repeated, tag = "1")]
    events: Vec<FilesystemEvent>,
});

#[cfg(test)]
mod tests {
    use super::*;

    fn json<T: Serialize>(value: &T) -> String {
        serde_json::to_string(value).unwrap()
    }

    #[test]
    fn json_is_as_the_clients_write_it() {
        let start: StartRequest = serde_json::from_str(
            r#"{"process":{"cmd":"/bin/bash","args":["-l","-c","true"],"envs":{"A":"b"},"cwd":"/tmp"},"pty":{"size":{"cols":80,"rows":24}},"stdin":false,"later":1}"#,
        )
        .unwrap();
        let process = start.process.clone().unwrap();
        assert_eq!(process.args, ["-l", "-c", "true"]);
        assert_eq!(start.pty.unwrap().size.unwrap().cols, 80);
        assert_eq!(start.stdin, Some(false));
        let signal: SendSignalRequest =
            serde_json::from_str(r#"{"process":{"pid":7},"signal":"SIGNAL_SIGKILL"}"#).unwrap();
        assert_eq!(signal.signal, 9);
        assert_eq!(signal.process.unwrap().selector, Some(Selected::Pid(7)));
        let input: StreamInputRequest =
            serde_json::from_str(r#"{"data":{"input":{"stdin":"aGk="}}}"#).unwrap();
        let Some(InputEvent::Data(data)) = input.event else {
            panic!("{input:?}");
        };
        let hi = Bytes::from_static(b"hi");
        assert_eq!(data.input.unwrap().input, Some(Input::Stdin(hi.clone())));
        let said = ProcessResponse {
            event: Some(ProcessEvent {
                event: Some(ProcessSaid::Data(DataEvent {
                    output: Some(Output::Stdout(hi)),
                })),
            }),
        };
        assert_eq!(json(&said), r#"{"event":{"data":{"stdout":"aGk="}}}"#);
        let entry = EntryInfo {
            r#type: FileType::FileTypeDirectory.into(),
            size: 4096,
            modified_time: Some(Time::from_millis(1_500)),
            ..EntryInfo::default()
        };
        let written: serde_json::Value = serde_json::from_str(&json(&entry)).unwrap();
        assert_eq!(written["type"], "FILE_TYPE_DIRECTORY");
        assert_eq!(written["size"], "4096");
        assert_eq!(written["modifiedTime"], "1970-01-01T00:00:01.5Z");
        assert_eq!(
            serde_json::from_str::<EntryInfo>(&json(&entry)).unwrap(),
            entry
        );
    }

    #[test]
    fn binary_is_protobuf() {
        // Written out by hand: event { end { exit_code: -1 (sint32), exited: true } }.
        let said = ProcessResponse {
            event: Some(ProcessEvent {
                event: Some(ProcessSaid::End(EndEvent {
                    exit_code: -1,
                    exited: true,
                    ..EndEvent::default()
                })),
            }),
        };
        let bytes = [0x0a, 0x06, 0x1a, 0x04, 0x08, 0x01, 0x10, 0x01];
        assert_eq!(said.encode_to_vec(), bytes);
        assert_eq!(ProcessResponse::decode(&bytes[..]).unwrap(), said);
    }
}
