//! What a host says of itself, and to whom.

use crate::fake::MINE;
use crate::fixture::{LOOKER, Running, Wish, start};
use crate::raw::call;
use ampoule_proto::v1 as wire;
use ampoule_proto::v1::revoke_leases_request::Of;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

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

/// A call that is answered.
async fn answer<T: prost::Message + Default>(
    server: &Running,
    call_of: &str,
    message: impl prost::Message,
) -> Result<T, Status> {
    let path = format!("ampoule.v1.HostService/{call_of}");
    let messages = call(server.unix(), &path, message.encode_to_vec(), None).await?;
    Ok(T::decode(messages[0].clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_steps_have_is_shown_by_pages_without_a_name_of_it_and_taken_back_by_job_or_number() {
    let server = start(Wish::default()).await;
    let list = async |request: wire::ListLeasesRequest| {
        answer::<wire::ListLeasesResponse>(&server, "ListLeases", request).await
    };
    let page = list(wire::ListLeasesRequest::default()).await.unwrap();
    let [grant] = page.grants.as_slice() else { panic!("{page:?}") };
    assert_eq!((grant.id, grant.job_id.as_str(), grant.server.as_str(), grant.leases), (7, MINE, "main", 2));
    assert_eq!((grant.accessor_sha256.len(), grant.tries, grant.last_error.as_str()), (64, 3, "sealed"));
    assert!(grant.handed_over_at.is_none() && grant.revoking_since.is_none() && grant.until.is_some());
    assert_eq!(page.next_page_token, "7");
    let last = wire::ListLeasesRequest { page_token: page.next_page_token, ..Default::default() };
    assert!(list(last).await.unwrap().next_page_token.is_empty());
    let wrong = wire::ListLeasesRequest { page_size: 1001, ..Default::default() };
    assert_eq!(list(wrong).await.unwrap_err().code(), Code::InvalidArgument);

    let revoke = async |of| {
        let request = wire::RevokeLeasesRequest { of };
        answer::<wire::RevokeLeasesResponse>(&server, "RevokeLeases", request).await.map(|of| of.asked)
    };
    assert_eq!(revoke(Some(Of::JobId(MINE.into()))).await.unwrap(), 1);
    assert_eq!(revoke(Some(Of::Grant(7))).await.unwrap(), 1);
    assert_eq!(revoke(Some(Of::Grant(8))).await.unwrap(), 0, "what has been taken back stays so");
    assert_eq!(revoke(None).await.unwrap_err().code(), Code::InvalidArgument);

    server.fake.is_busy.store(true, std::sync::atomic::Ordering::SeqCst);
    let check =
        answer::<wire::CheckSecretsResponse>(&server, "CheckSecrets", wire::CheckSecretsRequest::default());
    let refused = check.await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_error_details().retry_info().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_look_at_the_host_learns_nothing_of_secrets() {
    let server = start(Wish::default()).await;
    let token = server.issuer.token(LOOKER, "ampouled", 0);
    for path in ["ListLeases", "RevokeLeases", "CheckSecrets"] {
        let path = format!("ampoule.v1.HostService/{path}");
        let refused = call(server.tcp(None), &path, Vec::new(), Some(&token)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{path}");
    }
    let done = server.fake.order.lock().unwrap();
    assert!(done.is_empty(), "{done:?}");
}
