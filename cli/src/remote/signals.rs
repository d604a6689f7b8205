//! SIGINT and SIGTERM while a daemon's job is waited for.

use super::args::OnSignal;
use crate::failure::Failed;
use crate::{bar, show};
use ampoule_agent::local::Cancel;
use ampoule_spec::Code;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How many came.
pub(super) type Count = watch::Receiver<u8>;

/// Counts signals. The first one ends what is done before there is a job; the second leaves.
pub(super) fn listen(runtime: &Runtime, on_signal: OnSignal, cancel: &Cancel) -> Result<Count, Failed> {
    let failed = |e: std::io::Error| Failed::new(Code::Internal, format!("signals cannot be received: {e}"));
    let _entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let (sender, receiver) = watch::channel(0);
    let cancel = cancel.clone();
    runtime.spawn(async move {
        for count in 1_u8.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if count > 1 {
                show::line("ampoule: leaving; the daemon goes on with the job's end");
                bar::clear();
                std::process::exit(i32::from(Code::JobCancelled.exit() as u8));
            }
            if on_signal == OnSignal::Cancel {
                show::line("ampoule: cancelling; once more to leave without waiting");
            }
            cancel.cancel();
            let _ = sender.send(count);
        }
    });
    Ok(receiver)
}

/// Waits for the first one.
pub(super) async fn first(count: &mut Count) {
    // A sender that is gone will not send: then there is nothing to wait for, for ever.
    if count.wait_for(|count| *count > 0).await.is_err() {
        std::future::pending::<()>().await;
    }
}
