//! Outputs that nobody reads, beside one that somebody does.

use crate::fixture::{Wish, start};
use crate::hostile::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Wire, frame, prefixed, request, resident, short,
};
use crate::raw::call;
use ampoule_proto::v1 as wire;
use prost::Message as _;
use std::time::{Duration, Instant};

const DOWNLOAD: &str = "ampoule.v1.JobService/DownloadOutput";
/// Of the tree that is the output.
const TREE_BYTES: usize = 32 << 20;

fn wanted(offset: u64) -> Vec<u8> {
    let (job_id, output) = (crate::fake::MINE.into(), "out".into());
    wire::DownloadOutputRequest { job_id, output, offset }.encode_to_vec()
}

fn bytes(messages: &[bytes::Bytes]) -> Vec<u8> {
    let parts = messages.iter().map(|one| wire::DownloadOutputResponse::decode(one.clone()).unwrap().data);
    parts.collect::<Vec<_>>().concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_that_nobody_reads_cost_a_few_parts_each_and_their_seats_come_back() {
    let server = start(Wish { limits: short(), ..Wish::default() }).await;
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("large"), vec![b'x'; TREE_BYTES]).unwrap();
    *server.fake.tree.lock().unwrap() = Some(tree.path().to_owned());
    let whole = bytes(&call(server.unix(), DOWNLOAD, wanted(0), None).await.unwrap());
    assert!(whole.len() > TREE_BYTES);

    let (before, begun) = (resident(), Instant::now());
    let mut wires = Vec::new();
    // Twice as many as there are seats for one project.
    for _ in 0..4 {
        let mut wire = Wire::unix(&server).await;
        for stream in [1, 3, 5, 7] {
            wire.send(&frame(HEADERS, END_HEADERS, stream, &request(DOWNLOAD))).await;
            wire.send(&frame(DATA, END_STREAM, stream, &prefixed(&wanted(0)))).await;
        }
        wires.push(wire);
    }
    // Somebody who reads has his turn when those who do not are cut off, and no sooner than that.
    let offset = 5_000_001;
    let got = bytes(&call(server.unix(), DOWNLOAD, wanted(offset), None).await.unwrap());
    let (took, grown) = (begun.elapsed(), resident().saturating_sub(before));
    assert!(got == whole[5_000_001..], "the rest is another one");
    println!("16 downloads that nobody reads: {} KiB; the one after them took {took:?}", grown >> 10);
    // A tree of each would be half a gigabyte.
    assert!(grown < TREE_BYTES * 4, "{grown}");
    assert!(took > Duration::from_millis(700), "more seats than there are: {took:?}");
}
