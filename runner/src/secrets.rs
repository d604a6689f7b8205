//! A step's secrets in the supervisor: waited for, handed on and taken away again. It passes memory files on and reads
//! none of them.

use crate::clock::{self, Moment};
use crate::control::{Brought, Rotation, Value, Wants};
use crate::lifetime::{Lifetime, Wish};
use crate::recorder::Recorder;
use ampoule_sandbox::protocol::Order;
use ampoule_sandbox::secrets::SecretFiles;
use ampoule_sandbox::{Sandbox, StageError};
use ampoule_spec::control::SECRETS_WAIT_SECONDS;
use ampoule_spec::{Code, Delivery, Event, Failure, JobSpec, Name, STEP_SECRET_BYTES_MAX, Secret, Step};
use rustix::event::{Timespec, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A step's secrets with their values.
#[derive(Debug)]
pub(crate) struct Given {
    secrets: Vec<(Secret, Value)>,
    files: Option<SecretFiles>,
    /// What came for one while the step ran.
    replaced: Vec<(Name, OwnedFd)>,
    /// Bytes of all values so far, those that were replaced included: the pump masks each of them.
    bytes: usize,
}

/// Waits for the values of a step's secrets; what the step has no need of is not waited for. A failure ends the job.
pub(crate) fn await_values(
    job: &JobSpec,
    (number, step): (u32, &Step),
    lifetime: &mut Lifetime,
    deadline: Moment,
    recorder: &mut Recorder,
) -> Result<Option<Given>, Failure> {
    if step.secrets.is_empty() {
        return Ok(None);
    }
    let fail = |code, message: String| {
        let message = format!("step {}: {message}", step.name);
        Failure::new(code, message).in_step(number)
    };
    let Some(control) = lifetime.control() else {
        return Err(fail(Code::SecretUnavailable, "nobody can bring its secrets to this job".to_owned()));
    };
    // Before anybody is told that it waits.
    control.want(Wants::All { step: number, names: step.secrets.clone() });
    let ready = Event::StepReady { at: clock::now(), step: number, names: step.secrets.clone() };
    recorder.event(&ready).and_then(|()| recorder.sync()).map_err(|message| fail(Code::Internal, message))?;
    let until = Moment::now().after(Duration::from_secs(SECRETS_WAIT_SECONDS));
    let came = wait(lifetime, until.min(deadline));
    if let Some(control) = lifetime.control() {
        control.want(Wants::Nothing);
    }
    match came {
        Came::Brought(Brought::Values(values)) => {
            let bytes = values.iter().map(|value| value.bytes).sum();
            let secrets = job.secrets_of(step).into_iter().cloned().zip(values).collect();
            Ok(Some(Given { secrets, files: None, replaced: Vec::new(), bytes }))
        }
        Came::Brought(Brought::Failed(failed)) => Err(fail(failed.code, failed.message)),
        Came::Wish(wish) => Err(wish.failure()),
        Came::Nothing if deadline.left().is_zero() => Err(fail(
            Code::LimitTimeout,
            "the job's time limit ended before its secrets were there".to_owned(),
        )),
        Came::Nothing => {
            let waited = format!("nobody brought its secrets within {SECRETS_WAIT_SECONDS} seconds");
            Err(fail(Code::SecretUnavailable, waited))
        }
    }
}

/// What ended a wait.
#[derive(Debug)]
enum Came {
    Brought(Brought),
    Wish(Wish),
    Nothing,
}

fn wait(lifetime: &mut Lifetime, until: Moment) -> Came {
    loop {
        let left = until.left();
        if left.is_zero() {
            return Came::Nothing;
        }
        {
            let mut ready = lifetime.poll_fds();
            // A socket that is deaf for a moment is not polled.
            let left = left.min(Duration::from_secs(1));
            let limit = Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(1),
                tv_nsec: left.subsec_nanos().into(),
            };
            let _ = poll(&mut ready, Some(&limit));
        }
        if let Some(wish) = lifetime.wish() {
            return Came::Wish(wish);
        }
        if let Some(brought) = lifetime.control().and_then(|control| control.brought()) {
            return Came::Brought(brought);
        }
    }
}

impl Given {
    /// Shows a step its files, before there is a process of it.
    pub(crate) fn show(&mut self, sandbox: &Sandbox, user: ampoule_spec::StepUser) -> Result<(), StageError> {
        if !self.secrets.iter().any(|(secret, _)| file_name(secret).is_some()) {
            return Ok(());
        }
        let files = SecretFiles::make(sandbox.authority, user)?;
        for (secret, value) in &self.secrets {
            if let Some(name) = file_name(secret) {
                files.put(name, value.file.as_fd(), value.bytes)?;
            }
        }
        sandbox.show_secrets(&files)?;
        self.files = Some(files);
        Ok(())
    }

    /// Takes the files away: the step has ended.
    pub(crate) fn hide(self, sandbox: &Sandbox) -> Result<(), StageError> {
        if self.files.is_some() { sandbox.hide_secrets() } else { Ok(()) }
    }

    /// Every value, for the pump.
    pub(crate) fn values(&self) -> Vec<BorrowedFd<'_>> {
        self.secrets.iter().map(|(_, value)| value.file.as_fd()).collect()
    }

    /// Every value that the step ever had, and whose it is.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Name, BorrowedFd<'_>)> {
        let first = self.secrets.iter().map(|(secret, value)| (&secret.name, value.file.as_fd()));
        first.chain(self.replaced.iter().map(|(name, file)| (name, file.as_fd())))
    }

    /// Those that the step's process gets by descriptor, in the order of its plan.
    pub(crate) fn handed(&self) -> Vec<BorrowedFd<'_>> {
        let handed = self.secrets.iter().filter(|(secret, _)| crate::environment::handed(secret).is_some());
        handed.map(|(_, value)| value.file.as_fd()).collect()
    }

    /// What can change while the step runs.
    pub(crate) fn changing(&self) -> Vec<Name> {
        let files = self.secrets.iter().filter(|(secret, _)| file_name(secret).is_some());
        files.map(|(secret, _)| secret.name.clone()).collect()
    }

    /// Takes another value's bytes into account, before anything is done with it.
    pub(crate) fn admit(&mut self, rotation: &Rotation) -> Result<(), String> {
        let bytes = self.bytes + rotation.value.bytes;
        if bytes > STEP_SECRET_BYTES_MAX {
            let most = STEP_SECRET_BYTES_MAX;
            return Err(format!("a step's values, old ones included, have at most {most} bytes together"));
        }
        let file = rotation.value.file.try_clone().map_err(|e| e.to_string())?;
        self.replaced.push((rotation.name.clone(), file));
        self.bytes = bytes;
        Ok(())
    }

    /// Puts another value in the place of one, and tells the step. The pump masks it already.
    pub(crate) fn rotate(&self, rotation: &Rotation, sandbox: &Sandbox) -> Result<(), String> {
        let found = self.secrets.iter().find(|(secret, _)| secret.name == rotation.name);
        let (Some((secret, _)), Some(files)) = (found, &self.files) else {
            return Err("the step has no such file".to_owned());
        };
        let Some(name) = file_name(secret) else { return Err("it is no file".to_owned()) };
        let Value { file, bytes } = &rotation.value;
        files.put(name, file.as_fd(), *bytes).map_err(|e| e.to_string())?;
        match secret.on_rotate {
            Some(signal) => sandbox.order(&Order::Rotated { signal }).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}

fn file_name(secret: &Secret) -> Option<&str> {
    match &secret.delivery {
        Delivery::File(path) => path.components().last(),
        Delivery::Fd(_) | Delivery::Env(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifetime::Leash;
    use ampoule_spec::wire::CONTROL_SOCKET;
    use rustix::net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
    };

    #[test]
    fn wait_ends_with_its_time_and_before_it_with_what_came_or_a_cancel() {
        let base = tempfile::tempdir().unwrap();
        let (dir, _lock) = crate::jobdir::State::open(base.path(), None).unwrap().create("job").unwrap();
        let socket = crate::control::make(&dir).unwrap();
        let mut lifetime = Lifetime::new(Leash::Socket { agent: 0 }, Some(socket));
        let say = |packet: &[u8]| {
            let socket =
                socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            let path = base.path().join("jobs/job").join(CONTROL_SOCKET);
            connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            send(&socket, packet, SendFlags::NOSIGNAL).unwrap();
        };
        let begun = Moment::now();
        let soon = || Moment::now().after(Duration::from_millis(200));
        say(b"x");
        assert!(matches!(wait(&mut lifetime, soon()), Came::Nothing));
        assert!(begun.since() >= Duration::from_millis(200) && begun.since() < Duration::from_secs(5));
        let later = || Moment::now().after(Duration::from_secs(60));
        let names = vec![Name::parse("a").unwrap()];
        lifetime.control().unwrap().want(Wants::All { step: 3, names });
        say(br#"s{"step":3,"failed":{"code":"secret.denied","message":"no"}}"#);
        assert!(matches!(wait(&mut lifetime, later()), Came::Brought(Brought::Failed(_))));
        say(b"c");
        assert!(matches!(wait(&mut lifetime, later()), Came::Wish(Wish::Cancel)));
    }
}
