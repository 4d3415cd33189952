//! Tunnels, by `CONNECT` and by SOCKS.

use super::*;

/// Asks for a tunnel, and gives it when there is one.
pub(super) async fn connected(bench: &Bench, target: &str) -> UnixStream {
    let mut stream = bench.dial().await;
    stream
        .write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(
            timeout(PATIENCE, stream.read_u8())
                .await
                .expect("no answer")
                .expect("an end"),
        );
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream
}

pub(super) async fn answered<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    bytes: &[u8],
) -> Vec<u8> {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    timeout(PATIENCE, stream.read_exact(&mut back))
        .await
        .expect("no answer")
        .expect("an end");
    back
}

#[tokio::test]
async fn tls_passes_unread_when_it_names_the_host_and_is_cut_when_it_names_another() {
    let port = echo().await;
    let bench = Bench::new(&rules(port, r#""https""#));
    let target = format!("server.test:{port}");
    let mut tunnel = connected(&bench, &target).await;
    for hello in [
        client_hello("Server.TEST"),
        b"and whatever follows".to_vec(),
    ] {
        assert_eq!(answered(&mut tunnel, &hello).await, hello);
    }
    tunnel.shutdown().await.unwrap();
    assert_eq!(all(&mut tunnel).await, "");
    let told = bench
        .told("https://server.test ok sent some received some")
        .await;
    assert_eq!(told.len(), 2, "{told:?}");

    for bad in [
        client_hello("evil.test"),
        client_hello("server.test\0"),
        client_hello("server.test.evil.org"),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![22, 3, 1, 0, 0],
    ] {
        let mut tunnel = connected(&bench, &target).await;
        tunnel.write_all(&bad).await.unwrap();
        assert_eq!(all(&mut tunnel).await, "", "something came back");
    }
    let told = bench.told("denied server.test by tunnels-are-tls").await;
    let cut = "https://server.test denied sent none received none".to_owned();
    assert!(
        told.contains(&"denied server.test by tls-names-the-host".to_owned())
            && told.contains(&cut),
        "{told:?}"
    );
}

#[tokio::test]
async fn any_bytes_pass_where_a_rule_says_tcp_and_the_server_may_speak_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let bench = Bench::new(&rules(port, r#""tcp""#));
    let mut tunnel = connected(&bench, &format!("server.test:{port}")).await;
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"SSH-2.0").await.unwrap();
    let mut first = [0; 7];
    tunnel.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"SSH-2.0");
    tunnel.write_all(b"hello").await.unwrap();
    let mut hello = [0; 5];
    server.read_exact(&mut hello).await.unwrap();
    drop(server);
    all(&mut tunnel).await;
    // TLS in it still names the host.
    let mut tunnel = connected(&bench, &format!("server.test:{port}")).await;
    tunnel.write_all(&client_hello("evil.test")).await.unwrap();
    all(&mut tunnel).await;
    bench.told("denied server.test by tls-names-the-host").await;
}

async fn socks(bench: &Bench, request: &[u8]) -> (UnixStream, Vec<u8>) {
    let mut stream = bench.dial().await;
    stream.write_all(&[5, 2, 2, 0]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    stream.write_all(request).await.unwrap();
    let mut reply = vec![0; 10];
    timeout(PATIENCE, stream.read_exact(&mut reply))
        .await
        .expect("no reply")
        .expect("an end");
    (stream, reply)
}

fn socks_name(name: &[u8], port: u16) -> Vec<u8> {
    [
        &[5, 1, 0, 3, u8::try_from(name.len()).unwrap()][..],
        name,
        &port.to_be_bytes(),
    ]
    .concat()
}

#[tokio::test]
async fn socks_goes_the_same_way() {
    let port = echo().await;
    let bench = Bench::new(&rules(port, r#""tcp""#));
    let (mut stream, reply) = socks(&bench, &socks_name(b"server.test", port)).await;
    assert_eq!(reply[..2], [5, 0]);
    assert_eq!(answered(&mut stream, b"hi").await, b"hi");
    drop(stream);
    bench
        .told("tcp://server.test ok sent some received some")
        .await;
    for (request, code) in [
        (socks_name(b"evil.org", port), 2),
        (socks_name(b"server.test\0.evil.org", port), 2),
        (socks_name(b"x@server.test", port), 2),
        (socks_name(b"0x7f.1", port), 2),
        (vec![5, 1, 0, 1, 169, 254, 169, 254, 0, 80], 2),
        (vec![5, 2, 0, 1, 127, 0, 0, 1, 0, 80], 7),
        (vec![5, 1, 0, 9, 0, 0, 0, 0, 0, 0], 8),
        (socks_name(b"nobody.test", port), 4),
    ] {
        let (mut stream, reply) = socks(&bench, &request).await;
        assert_eq!(reply[..2], [5, code], "{request:?}");
        assert_eq!(all(&mut stream).await, "");
    }
    let told = bench.told("denied ? by hosts-have-one-spelling").await;
    assert!(
        told.contains(&"denied 169.254.169.254 by nothing-allows".to_owned()),
        "{told:?}"
    );
    // Whoever insists on a password gets none of this.
    let mut stream = bench.dial().await;
    stream.write_all(&[5, 1, 2]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0xff]);
}
