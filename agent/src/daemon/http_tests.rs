use super::*;
use std::io::{Read, Write};
use std::net::SocketAddr;

async fn start(vitals: Arc<Vitals>) -> SocketAddr {
    let to = MetricsListener::Loopback(SocketAddr::from(([127, 0, 0, 1], 0)));
    let bound = Bound::bind(&to).unwrap().unwrap();
    let Bound::Tcp(listener) = &bound else { panic!("a loopback address gives a TCP listener") };
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(bound, vitals));
    address
}

async fn ask(address: SocketAddr, request: &'static str) -> String {
    let ask = move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_answer_and_readiness_says_what_is_missing() {
    let vitals = Arc::new(Vitals::default());
    let address = start(vitals.clone()).await;
    let live = ask(address, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(live.starts_with("HTTP/1.1 200 ") && live.ends_with("\r\n\r\nok\n"), "{live}");
    let ready = ask(address, "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("the launcher does not answer"), "{ready}");
    vitals.set_launcher(true);
    vitals.set_accepting(true);
    let ready = ask(address, "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
    let metrics = ask(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(metrics.contains(kind) && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(metrics.contains("\nampoule_launcher_up 1\n"));
    let version = ask(address, "GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(version.contains(concat!("{\"ampouled\":\"", env!("CARGO_PKG_VERSION"), "\"}")), "{version}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_question_is_refused() {
    let address = start(Arc::default()).await;
    let post = ask(address, "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    let none = ask(address, "GET /etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(none.starts_with("HTTP/1.1 404 "), "{none}");
    let noise = ask(address, "\x16\x03\x01\r\n\r\n").await;
    assert!(noise.is_empty() || noise.starts_with("HTTP/1.1 400 "), "{noise}");
}
