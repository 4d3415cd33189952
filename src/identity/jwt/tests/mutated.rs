//! Whatever is done to a token, and whatever else comes in place of one.

use proptest::prelude::*;

use super::mint::{By, Draft};
use super::*;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

/// Any single bit of the text, and any single bit of what the text stands for.
#[tokio::test]
async fn a_token_with_a_bit_turned_is_refused() {
    let house = House::new().await;
    let drafts = [
        Draft::rsa(),
        Draft::public("ES256", "ec", By::Ec),
        Draft::public("EdDSA", "ed", By::Ed),
        Draft::secret(),
    ];
    for draft in drafts {
        let good = draft.token();
        assert!(house.ask(&good).await.is_ok());
        for at in 0..good.len() * 8 {
            let mut bytes = good.clone().into_bytes();
            bytes[at / 8] ^= 1 << (at % 8);
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(house.ask(&text).await.is_err(), "bit {at} of {good}");
            }
        }
        let parts: Vec<Vec<u8>> = good
            .split('.')
            .map(|part| super::super::token::decode(part).unwrap())
            .collect();
        for part in 0..3 {
            for at in 0..parts[part].len() * 8 {
                let mut parts = parts.clone();
                parts[part][at / 8] ^= 1 << (at % 8);
                let text = parts.iter().map(mint::encode).collect::<Vec<_>>().join(".");
                assert!(
                    house.ask(&text).await.is_err(),
                    "bit {at} of part {part} of {good}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_it_panic_and_none_is_taken(text in "\\PC{0,200}", dotted in "[A-Za-z0-9_=.-]{0,300}") {
        block_on(async {
            let house = trusting(vec![public("pem", KeySource::Pem(path("rsa.pem")))]).await;
            assert!(house.authenticate(&text, now()).await.is_err());
            assert!(house.authenticate(&dotted, now()).await.is_err());
        });
    }

    #[test]
    fn no_json_makes_it_panic_and_none_is_taken(header in "\\PC{0,60}", claims in "\\PC{0,120}", name in "[a-z0-9]{1,6}", value in "\\PC{0,20}") {
        block_on(async {
            let house = trusting(vec![public("pem", KeySource::Pem(path("rsa.pem")))]).await;
            let by = By::Bytes(vec![1; 256]);
            let json = serde_json::json!({name: value}).to_string();
            for (header, claims) in [(&header, &claims), (&json, &claims), (&header, &json), (&json, &json)] {
                assert!(house.authenticate(&mint::raw(header, claims, &by), now()).await.is_err());
            }
        });
    }

    /// Whatever the claims are, what is taken can stand in the record.
    #[test]
    fn who_is_taken_can_be_recorded(subject in prop_oneof!["[ -~]{0,140}", "\\PC{0,20}"], team in "[a-zA-Z0-9./ -]{0,70}") {
        block_on(async {
            let issuer = Issuer {
                algorithms: [Algorithm::EdDsa].into(),
                team: TeamRule::Claim { claim: claim("team"), map: None },
                ..public("public", KeySource::Pem(path("ed.pem")))
            };
            let house = trusting(vec![issuer]).await;
            let draft = Draft::public("EdDSA", "ed", By::Ed).claim("sub", subject.clone().into()).claim("team", team.clone().into());
            if let Ok((client, _)) = house.authenticate(&draft.token(), now()).await {
                let shown = client.by.to_string();
                assert_eq!(shown, format!("jwt:public:{subject}"));
                assert!(shown.len() <= 128 + 11 && shown.bytes().all(|b| b.is_ascii_graphic()));
                assert_eq!(client.team.as_str(), team);
            }
        });
    }
}
