//! What operators ask of the audit log, where the answer has no bound: lines, as they come.

use futures_util::StreamExt;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::protocol::{Answer, ArchiveView, Request};
use super::server::{Frames, MAX_LIST, PROGRESS_INTERVAL, send};
use crate::app::{App, AppError, ocsf_event};
use crate::base::clock::Timestamp;
use crate::model::principal::Principal;
use crate::model::query::AuditFilter;
use crate::model::record::{hex, key_name};
use crate::model::verify::Verified;

/// Most lines, and most bytes of them, in one frame: well below its bound, with what JSON adds.
const LINES: usize = 200;
const LINES_BYTES: usize = 256 << 10;

/// Most files in one answer: it fits into one frame, with paths as long as they may be.
const MAX_ARCHIVES: u32 = 200;

/// Records that are verified before it is looked whether the daemon stops.
const PART: i64 = 100_000;

/// Answers; the last answer is for the caller to send.
pub(super) async fn answer(
    app: &App,
    frames: &mut Frames,
    who: &Principal,
    request: Request,
    stop: &CancellationToken,
) -> Result<Answer, AppError> {
    match request {
        Request::AuditList { mut filter } => {
            filter.limit = filter.limit.min(MAX_LIST);
            let archived_up_to = match filter.after {
                0 => Some(app.audit_extent().await?.after).filter(|after| *after > 0),
                _ => None,
            };
            let lines = app.audit_lines(who, filter).await?;
            let lines = lines.into_iter().map(|(_, line)| line).collect();
            send_lines(frames, lines).await;
            Ok(Answer::AuditListed { archived_up_to })
        }
        Request::AuditTail {
            last,
            filter,
            follow,
        } => tail(app, frames, who, (last, filter, follow), stop).await,
        Request::AuditExport { after, until, ocsf } => {
            let mut export = app.export_audit(who, after, until).await?;
            while let Some(mut lines) = export.next().await.map_err(AppError::Audit)? {
                if ocsf {
                    // What is no record, as the checkpoint, has no event.
                    let events = lines.iter().filter_map(|line| ocsf_event(line));
                    lines = events.map(|event| event.to_string()).collect();
                }
                if !send_lines(frames, lines).await {
                    break;
                }
            }
            Ok(Answer::Done)
        }
        Request::AuditVerify => verify(app, who, stop).await,
        Request::AuditArchives { after, limit } => archives(app, who, after, limit).await,
        Request::AuditArchive { before } => archive(app, frames, who, before).await,
        _ => {
            let public = app.audit_key(who).await?;
            Ok(Answer::AuditKey {
                public: hex(&public),
                name: key_name(&public),
            })
        }
    }
}

async fn tail(
    app: &App,
    frames: &mut Frames,
    who: &Principal,
    (last, filter, is_followed): (u32, AuditFilter, bool),
    stop: &CancellationToken,
) -> Result<Answer, AppError> {
    let until = app.audit_end(who).await?;
    let mut follower = app.follow_audit(who, filter, Some(last)).await?;
    loop {
        let is_behind = follower.position() < until;
        if !is_followed && !is_behind {
            return Ok(Answer::Done);
        }
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Answer::Done),
            // An operator says nothing more: whatever comes is the end.
            _ = frames.next() => return Ok(Answer::Done),
            next = async {
                if is_followed {
                    follower.next().await
                } else {
                    follower.next_up_to(until).await
                }
            } => next,
        };
        let Some(next) = next else {
            return Ok(Answer::Done);
        };
        let (_, first) = next.map_err(AppError::Audit)?;
        let mut lines = vec![first];
        lines.extend(follower.at_hand(LINES).into_iter().map(|(_, line)| line));
        if !send_lines(frames, lines).await {
            return Ok(Answer::Done);
        }
    }
}

async fn verify(app: &App, who: &Principal, stop: &CancellationToken) -> Result<Answer, AppError> {
    let mut all = Verified::default();
    let mut after = Some(0);
    while let Some(from) = after {
        let found = match app.verify_audit(who, from, PART).await {
            // Archived meanwhile, after it was verified.
            Err(AppError::Archived { up_to, .. }) => {
                after = Some(up_to);
                continue;
            }
            found => found?,
        };
        if from == 0 {
            all.after = found.verified.after;
        }
        if found.finding.is_some() {
            return Ok(Answer::AuditVerified {
                verified: all,
                finding: found.finding,
            });
        }
        all.records += found.verified.records;
        all.checkpoints += found.verified.checkpoints;
        all.seq = found.verified.seq;
        all.signed_seq = all.signed_seq.max(found.verified.signed_seq);
        after = found.next;
        if stop.is_cancelled() && after.is_some() {
            return Err(AppError::Internal("casemated is stopping".to_owned()));
        }
    }
    Ok(Answer::AuditVerified {
        verified: all,
        finding: None,
    })
}

async fn archives(app: &App, who: &Principal, after: i64, limit: u32) -> Result<Answer, AppError> {
    let found = app
        .audit_archives(who, after, limit.min(MAX_ARCHIVES))
        .await?;
    let items = found.into_iter().map(|signed| {
        let path = app.archive_directory().join(&signed.archive.file);
        let length = std::fs::symlink_metadata(&path).map(|found| found.len());
        ArchiveView {
            present: length.is_ok_and(|length| length == signed.archive.size_bytes),
            path,
            archive: signed.archive,
        }
    });
    Ok(Answer::AuditArchives {
        items: items.collect(),
    })
}

/// Tells that it is under way until it is done. An operator who goes away stops it not.
async fn archive(
    app: &App,
    frames: &mut Frames,
    who: &Principal,
    before: Option<Timestamp>,
) -> Result<Answer, AppError> {
    let archiving = app.archive_audit(who, before);
    tokio::pin!(archiving);
    let mut beat = tokio::time::interval(PROGRESS_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            done = &mut archiving => {
                let done = done?;
                return Ok(Answer::AuditArchived {
                    archives: done.archives,
                    records: done.records,
                    up_to: done.up_to,
                });
            }
            _ = beat.tick() => {
                let so_far = Answer::Progress {
                    received_bytes: 0,
                    total_bytes: None,
                };
                send(frames, &so_far).await;
            }
        }
    }
}

/// Sends lines in frames that fit. Whether all were taken.
async fn send_lines(frames: &mut Frames, lines: Vec<String>) -> bool {
    let mut batch = Vec::new();
    let mut bytes = 0;
    for line in lines {
        if bytes + line.len() > LINES_BYTES && !batch.is_empty() {
            let lines = std::mem::take(&mut batch);
            bytes = 0;
            if !send(frames, &Answer::AuditLines { lines }).await {
                return false;
            }
        }
        bytes += line.len();
        batch.push(line);
    }
    batch.is_empty() || send(frames, &Answer::AuditLines { lines: batch }).await
}
