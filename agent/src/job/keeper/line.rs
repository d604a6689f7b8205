//! The session that takes our jobs: it keeps prepared sandboxes, which are of use to it alone, and says when a job's report is there.
//!
//! Many ask over it, and one thread hears what it says: answers come in the order of the questions, ends of jobs in between.

use super::launcher::Answer;
use crate::local::{Runner, RunnerError};
use ampoule_spec::JobId;
use ampoule_spec::wire::{Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

/// Who waits for the end of which job.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<HashMap<JobId, Arc<Notify>>>);

/// Somebody who waits for a job's end.
#[derive(Debug)]
pub(super) struct Ending {
    ends: Arc<Ends>,
    job: JobId,
    told: Arc<Notify>,
}

impl Ends {
    fn map(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a job's end from now on; a job has one driver.
    pub(super) fn of(self: &Arc<Self>, job: &JobId) -> Ending {
        let told = self.map().entry(job.clone()).or_default().clone();
        Ending { ends: self.clone(), job: job.clone(), told }
    }

    fn tell(&self, job: &JobId) {
        if let Some(told) = self.map().get(job) {
            told.notify_one();
        }
    }

    /// Has everybody look: nobody will be told any more.
    fn tell_all(&self) {
        self.map().values().for_each(|told| told.notify_one());
    }
}

impl Ending {
    /// Waits until it was said that the job has ended, or until there is nobody who would say it: look.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.ends.map().remove(&self.job);
    }
}

/// Questions that are not answered, in their order; none: nothing more is heard.
type Asked = Option<VecDeque<(JobId, oneshot::Sender<Answer>)>>;

/// The session. Dropping it ends it; its jobs go on.
#[derive(Debug)]
pub(super) struct Line {
    runner: Arc<Runner>,
    asked: Arc<Mutex<Asked>>,
}

impl Line {
    /// Hears a session from now on.
    ///
    /// # Errors
    /// If there can be no thread for it.
    pub(super) fn begin(runner: Runner, ends: Arc<Ends>) -> std::io::Result<Self> {
        let line = Self { runner: Arc::new(runner), asked: Arc::new(Mutex::new(Some(VecDeque::new()))) };
        let (runner, asked) = (line.runner.clone(), line.asked.clone());
        let hearing = std::thread::Builder::new().name("line".to_owned());
        hearing.spawn(move || {
            hear(&runner, &asked, &ends);
            // Whoever has not been answered finds out.
            locked(&asked).take();
            ends.tell_all();
        })?;
        Ok(line)
    }

    /// Whether it is still heard.
    pub(super) fn is_open(&self) -> bool {
        locked(&self.asked).is_some()
    }

    /// Asks for a job; `spec` is a file at its beginning. None: nobody was asked.
    pub(super) fn ask(&self, job: &JobId, spec: &File) -> Option<oneshot::Receiver<Answer>> {
        let (answer, answered) = oneshot::channel();
        // Held until it is sent: the order of the questions is that of the answers.
        let mut asked = locked(&self.asked);
        let waiting = asked.as_mut()?;
        // A session that reads nothing must not hold up who hears it: both would wait for each other.
        if !is_writable(&self.runner) {
            return None;
        }
        self.runner.send(&Request::Run { lifetime: false }, &[spec.as_fd()]).ok()?;
        waiting.push_back((job.clone(), answer));
        Some(answered)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Upon which its thread hears the end.
        let _ = rustix::net::shutdown(self.runner.channel(), rustix::net::Shutdown::Both);
    }
}

fn is_writable(runner: &Runner) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(runner.channel(), PollFlags::OUT)];
    poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1)
}

fn locked(asked: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears a session until it ends, or says something that is not understood.
fn hear(runner: &Runner, asked: &Mutex<Asked>, ends: &Ends) {
    let next = || locked(asked).as_mut().and_then(VecDeque::pop_front);
    loop {
        let (admitted, answer) = match runner.receive_any() {
            Ok(Reply::Finished { job }) => {
                ends.tell(&job);
                continue;
            }
            Ok(Reply::Admitted { job }) => (Some(job), Answer::Admitted),
            Err(RunnerError::Refused { code, message }) => (None, Answer::Refused { code, message }),
            Ok(_) | Err(_) => return,
        };
        let Some((job, waiting)) = next() else { return };
        if admitted.is_some_and(|admitted| admitted != job) {
            return;
        }
        let _ = waiting.send(answer); // Whoever asked may be gone.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_ipc::Channel;
    use ampoule_spec::Code;
    use std::time::Duration;

    fn job(number: u8) -> JobId {
        JobId::parse(&format!("01890a5d-ac96-774b-bcce-b302099a80{number:02x}")).unwrap()
    }

    /// A line, and what the launcher has of it.
    fn line() -> (Line, Arc<Ends>, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        let ends = Arc::new(Ends::default());
        (Line::begin(Runner::over(ours), ends.clone()).unwrap(), ends, theirs)
    }

    fn spec() -> File {
        tempfile::tempfile().unwrap()
    }

    #[tokio::test]
    async fn answers_are_those_of_their_questions_and_ends_come_in_between() {
        let (line, ends, launcher) = line();
        let ending = ends.of(&job(9));
        let first = line.ask(&job(1), &spec()).unwrap();
        let second = line.ask(&job(2), &spec()).unwrap();
        let refused = Reply::Refused { code: Code::AdmissionBusy, message: "later".to_owned() };
        for reply in [Reply::Admitted { job: job(1) }, Reply::Finished { job: job(9) }, refused] {
            launcher.send(&reply, &[]).unwrap();
        }
        assert!(matches!(first.await.unwrap(), Answer::Admitted));
        assert!(matches!(second.await.unwrap(), Answer::Refused { code: Code::AdmissionBusy, .. }));
        tokio::time::timeout(Duration::from_secs(5), ending.told()).await.unwrap();
    }

    #[tokio::test]
    async fn session_that_reads_nothing_holds_nobody_up() {
        let (line, _, launcher) = line();
        let spec = spec();
        let mut asked = Vec::new();
        while let Some(question) = line.ask(&job(1), &spec) {
            asked.push(question);
            assert!(asked.len() < 100_000, "it takes whatever is sent");
        }
        assert!(line.is_open());
        launcher.send(&Reply::Admitted { job: job(1) }, &[]).unwrap();
        let first = tokio::time::timeout(Duration::from_secs(5), asked.remove(0)).await;
        assert!(matches!(first.unwrap().unwrap(), Answer::Admitted), "what it says is heard");
    }

    #[tokio::test]
    async fn session_that_ends_or_answers_for_another_job_leaves_nobody_waiting() {
        for reply in [None, Some(Reply::Admitted { job: job(2) })] {
            let (line, ends, launcher) = line();
            let (ending, asked) = (ends.of(&job(9)), line.ask(&job(1), &spec()).unwrap());
            if let Some(reply) = &reply {
                launcher.send(reply, &[]).unwrap();
            } else {
                drop(launcher);
            }
            assert!(asked.await.is_err(), "it is silent: {reply:?}");
            tokio::time::timeout(Duration::from_secs(5), ending.told()).await.unwrap();
            assert!(!line.is_open() && line.ask(&job(3), &spec()).is_none());
        }
    }
}
