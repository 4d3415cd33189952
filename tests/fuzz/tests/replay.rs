//! What the fuzzers learnt, replayed; and that the seeds are what the link says today.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};

use casemate_fuzz::TARGETS;

/// Bounds of everything that is kept, so that it stays a test and does not become an archive.
const MAX_FILES: usize = 260;
const MAX_BYTES: usize = 200 * 1000;

/// Set by `scripts/fuzz seeds`, which writes the seeds instead of comparing them.
const WRITE: &str = "CASEMATE_WRITE_SEEDS";

fn corpus(target: &str) -> PathBuf {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    corpus.join(target)
}

fn files(target: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(corpus(target)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_corpus_brings_nothing_about() {
    for target in TARGETS {
        let found = files(target.name);
        assert!(!found.is_empty(), "{} has no corpus", target.name);
        for path in found {
            (target.run)(&fs::read(&path).unwrap());
        }
    }
}

#[test]
fn the_seeds_are_what_the_link_says_today() {
    for target in TARGETS {
        for (name, bytes) in (target.seeds)() {
            let path = corpus(target.name).join(format!("seed-{name}"));
            if std::env::var_os(WRITE).is_some() {
                fs::create_dir_all(corpus(target.name)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let kept = fs::read(&path).unwrap_or_default();
            assert_eq!(kept, bytes, "{}: run scripts/fuzz seeds", path.display());
            (target.run)(&bytes);
        }
    }
}

#[test]
fn the_corpus_is_small() {
    let found: Vec<_> = TARGETS
        .iter()
        .flat_map(|target| files(target.name))
        .collect();
    let bytes: usize = found.iter().map(|path| fs::read(path).unwrap().len()).sum();
    assert!(found.len() <= MAX_FILES, "{} files", found.len());
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
}
