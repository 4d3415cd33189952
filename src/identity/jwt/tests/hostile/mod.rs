//! Tokens of enemies, each with a name and the reason for which it is refused. None may ever be taken.

mod claims;
mod forms;
mod signed;

use std::collections::BTreeSet;

use super::mint::Draft;
use super::*;
use claims::{mapped, registered};
use forms::{headers, malformed};
use signed::{algorithms, signatures};

struct Row {
    name: String,
    token: String,
    reason: Refused,
}

fn row(name: impl Into<String>, token: impl Into<String>, reason: Refused) -> Row {
    Row {
        name: name.into(),
        token: token.into(),
        reason,
    }
}

fn rsa() -> Draft {
    Draft::rsa()
}

#[tokio::test]
async fn no_hostile_token_is_taken() {
    let house = House::new().await;
    let tables = [
        malformed(),
        algorithms(),
        signatures(),
        headers(),
        registered(),
        mapped(),
    ];
    let rows: Vec<Row> = tables.into_iter().flatten().collect();
    let names: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    let tokens: BTreeSet<&str> = rows.iter().map(|row| row.token.as_str()).collect();
    assert_eq!(names.len(), rows.len(), "each row has a name of its own");
    assert_eq!(tokens.len(), rows.len(), "no two rows are one token");
    assert!(rows.len() >= 300, "only {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        // What was refused once is not known the second time.
        for _ in 0..2 {
            let said = house.ask(&row.token).await;
            if said != Err(row.reason) {
                wrong.push(format!(
                    "{}: {said:?} instead of {:?}",
                    row.name, row.reason
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // The same issuers take what is good: the rows fail for their own reasons.
    assert!(house.ask(&Draft::rsa().token()).await.is_ok());
    assert!(house.ask(&Draft::secret().token()).await.is_ok());
    assert!(house.ask(&token_by(1, "one", "two")).await.is_ok());
}

#[test]
fn every_reason_has_a_word_of_its_own() {
    let tables = [
        malformed(),
        algorithms(),
        signatures(),
        headers(),
        registered(),
        mapped(),
    ];
    let reasons: BTreeSet<Refused> = tables.iter().flatten().map(|row| row.reason).collect();
    let words: BTreeSet<&str> = reasons.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(words.len(), reasons.len());
    // Those that no token alone leads to are in `servers`.
    assert_eq!(words.len(), 23, "{words:?}");
}
