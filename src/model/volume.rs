//! Volumes: what a team keeps beyond its sessions, each with a size that it never exceeds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::base::clock::Timestamp;
use crate::base::id::{SessionId, VolumeId};

/// Smallest volume: below it an ext4 file system has more of itself than of anybody's files.
pub const MIN_VOLUME_BYTES: u64 = 16 << 20;
/// Largest volume that any configuration may allow: 16 TiB, the most of an ext4 file system with blocks of 4 KiB.
pub const MAX_VOLUME_BYTES: u64 = 1 << 44;
/// A volume's size is a multiple of this.
pub const VOLUME_STEP_BYTES: u64 = 1 << 20;
/// Most volumes of one session. Each costs a process on the host.
pub const MAX_VOLUMES_OF_SESSION: usize = 8;

/// How a session has a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeMode {
    /// It reads and writes, and no other session has it.
    #[default]
    Rw,
    /// It reads, as others may that read too.
    Ro,
}

impl VolumeMode {
    /// The word on the wire and in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rw => "rw",
            Self::Ro => "ro",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Rw, Self::Ro]
            .into_iter()
            .find(|mode| mode.as_str() == text)
    }
}

/// A volume as one session has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionVolume {
    /// Which; a removed one's name may come again, its identifier never.
    pub id: VolumeId,
    /// Its name then, which is its directory below `/volumes` as well.
    pub name: Name,
    /// How.
    pub mode: VolumeMode,
}

/// Where a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Its file is being made.
    Making,
    /// It can be attached.
    Ready,
    /// Its file is being removed.
    Removing,
}

impl VolumeState {
    /// The word in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Ready => "ready",
            Self::Removing => "removing",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Making, Self::Ready, Self::Removing]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// A volume as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name for programs, and its file's.
    pub id: VolumeId,
    /// The team that owns it.
    pub team: Name,
    /// Its name, which no other volume of the team has.
    pub name: Name,
    /// How large its file system is, itself included, in bytes.
    pub size_bytes: u64,
    /// Who made it, as the audit log writes principals.
    pub created_by: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Where it stands.
    pub state: VolumeState,
}

/// A session that lives and has a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub session: SessionId,
    /// How it has it.
    pub mode: VolumeMode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_and_is_the_wire_word() {
        for mode in [VolumeMode::Rw, VolumeMode::Ro] {
            assert_eq!(VolumeMode::parse(mode.as_str()), Some(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
        }
        assert_eq!(VolumeMode::parse("rx"), None);
        let states = [
            VolumeState::Making,
            VolumeState::Ready,
            VolumeState::Removing,
        ];
        for state in states {
            assert_eq!(VolumeState::parse(state.as_str()), Some(state));
        }
    }
}
