use crate::support::Daemon; use serde_json::json;
#[tokio::test]
async fn zz() {
    let daemon = Daemon::up().await; let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    for words in [json!({"pty":{"rows":3,"cols":7},"argv":["sh","-c","exit 5"]}), json!({"pty":{"rows":3,"cols":7},"argv":["sh","-c","echo hi; exit 5"]}), json!({"pty":{"rows":3,"cols":7}})] {
        let mut t = client.terminal(&format!("/v1/sessions/{id}/exec")).await.unwrap();
        t.tell(words.clone()).await;
        if words["argv"].is_null() { t.write(b"exit 5\n").await; }
        let b = std::time::Instant::now();
        for _ in 0..10 { match tokio::time::timeout(std::time::Duration::from_secs(5), t.next()).await { Ok(Some(s)) => eprintln!("ZZ {:?} {s:?}", b.elapsed()), other => { eprintln!("ZZ {:?} {other:?}", b.elapsed()); 
           eprintln!("ZZ {}", client.sh_as(&id,"user","ps axf -o pid,ppid,stat,args; ls -l /proc/*/fd 2>/dev/null | grep pts").await.1); break } } }
    }
    client.end(&id).await;
}
