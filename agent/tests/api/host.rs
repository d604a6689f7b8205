//! What a host says of itself, and to whom.

use crate::fixture::{LOOKER, Running, Wish, start};
use crate::raw::call;
use ampoule_proto::v1 as wire;
use prost::Message as _;
use tonic::transport::Channel;

async fn ask(server: &Running, channel: Channel, token: Option<&str>) -> wire::GetCapabilitiesResponse {
    let told = server.told.count();
    let messages = call(channel, "ampoule.v1.HostService/GetCapabilities", Vec::new(), token).await.unwrap();
    assert_eq!(server.told.count(), told, "a question that nobody has put is no refusal");
    wire::GetCapabilitiesResponse::decode(messages[0].clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_all_projects_have_here_is_for_operators_alone() {
    let server = start(Wish::default()).await;
    let operator = ask(&server, server.unix(), None).await;
    assert_eq!((operator.accepting, operator.running, operator.queued), (true, 3, 5));
    let token = server.issuer.token(LOOKER, "ampouled", 0);
    let other = ask(&server, server.tcp(None), Some(&token)).await;
    assert_eq!((other.accepting, other.running, other.queued), (true, 0, 0));
    assert_eq!(other.agent_version, operator.agent_version);
}
