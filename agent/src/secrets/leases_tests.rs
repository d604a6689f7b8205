use super::*;
use std::os::unix::fs::MetadataExt;

fn job(number: u64) -> JobId {
    JobId::parse(&format!("01890a5d-ac96-774b-bcce-b3020{number:07}")).unwrap()
}

fn grant(number: u64) -> Grant {
    Grant {
        job: job(number),
        step: 1,
        step_name: Name::parse("deploy").unwrap(),
        project: Name::parse("web").unwrap(),
        server: Some(Name::parse("main").unwrap()),
        cluster: Some("c1/".to_owned()),
        secrets: vec![Given { name: "npm".to_owned(), provider: "vault:main".to_owned() }],
        rotates: false,
        accessor: Some(format!("accessor-{number}")),
        leases: Vec::new(),
        until: UnixNanos(15),
        minted_at: UnixNanos(1),
        given_at: None,
        revoking_at: None,
        closed_at: None,
    }
}

#[test]
fn everything_that_was_written_down_is_there_after_a_restart_and_nobody_elses_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open(dir.path()).unwrap();
    let (a, b) = (leases.minted(grant(1)).unwrap(), leases.minted(grant(2)).unwrap());
    leases.leased(a, vec!["database/creds/ro/1".to_owned()]).unwrap();
    leases.leased(a, vec!["database/creds/rw/2".to_owned()]).unwrap();
    leases.renewed(a, UnixNanos(99)).unwrap();
    leases.handed_over(a, UnixNanos(7)).unwrap();
    leases.revoking(a, UnixNanos(8)).unwrap();
    leases.revoking(a, UnixNanos(9)).unwrap();
    leases.closed(b, UnixNanos(10)).unwrap();
    let before = (leases.of_job(&job(1)), leases.of_job(&job(2)));
    assert!(Leases::open(dir.path()).is_err(), "one journal has one writer");
    drop(leases);
    let leases = Leases::open(dir.path()).unwrap();
    assert_eq!((leases.of_job(&job(1)), leases.of_job(&job(2))), before);
    let (_, kept) = leases.open_grants().pop().unwrap();
    assert_eq!(kept.leases, ["database/creds/ro/1", "database/creds/rw/2"]);
    assert_eq!((kept.revoking_at, kept.until), (Some(UnixNanos(8)), UnixNanos(99)));
    assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
    // What is over is forgotten with its job's record, and what is open is not.
    leases.forget(&job(1)).unwrap();
    leases.forget(&job(2)).unwrap();
    assert_eq!((leases.of_job(&job(1)).len(), leases.of_job(&job(2)).len()), (1, 0));
    assert!(leases.closed(b, UnixNanos(1)).is_err());
    drop(leases);
    let leases = Leases::open(dir.path()).unwrap();
    assert_eq!((leases.of_job(&job(1)).len(), leases.of_job(&job(2)).len()), (1, 0));
    // A number that was used is not another's for as long as anything is kept.
    assert!(leases.minted(grant(3)).unwrap() > a);
}

#[test]
fn torn_end_was_told_to_nobody_and_anything_else_keeps_the_agent_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open(dir.path()).unwrap();
    leases.minted(grant(1)).unwrap();
    let whole = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    leases.minted(grant(2)).unwrap();
    drop(leases);
    let path = dir.path().join(FILE);
    let bytes = std::fs::read(&path).unwrap();
    for cut in whole..bytes.len() as u64 {
        std::fs::write(&path, &bytes[..usize::try_from(cut).unwrap()]).unwrap();
        let leases = Leases::open(dir.path()).unwrap();
        assert_eq!(leases.open_grants().len(), 1, "{cut}");
    }
    // What a cut of power leaves of the last one: sectors that were not written are zeros.
    let last = usize::try_from(whole).unwrap();
    for from in last..bytes.len() {
        let mut torn = bytes.clone();
        torn[from..(from + 100).min(bytes.len())].fill(0);
        std::fs::write(&path, torn).unwrap();
        assert_eq!(Leases::open(dir.path()).unwrap().open_grants().len(), 1, "{from}");
    }
    for at in [0, 20, last - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let refused = Leases::open(dir.path()).unwrap_err();
        assert!(matches!(refused, LeasesError::Damaged { offset: 0, .. }), "{refused}");
    }
    // An entry that this build does not know is one that it must not pass over.
    let file = File::create(&path).unwrap();
    Writer::create(file).unwrap().append(ENTRY, b"{\"entry\":\"extended\",\"id\":1}").unwrap();
    assert!(matches!(Leases::open(dir.path()), Err(LeasesError::Damaged { .. })));
}

#[test]
fn file_stays_small_however_many_grants_there_were() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open(dir.path()).unwrap();
    let open = leases.minted(grant(1)).unwrap();
    let mut most = 0;
    for number in 2..8000 {
        // Written and not synced: only what the file has counts here.
        let entry = Entry::Minted { id: number, grant: Box::new(grant(number)) };
        leases.book().writer.append(ENTRY, &serde_json::to_vec(&entry).unwrap()).unwrap();
        if number % 100 == 99 {
            leases.handed_over(open, UnixNanos(number)).unwrap();
        }
        most = most.max(std::fs::metadata(dir.path().join(FILE)).unwrap().len());
    }
    assert!(most < 3 * GROWTH_BYTES, "{most}");
    assert_eq!(leases.get(open).unwrap().given_at, Some(UnixNanos(7999)));
    drop(leases);
    assert!(Leases::open(dir.path()).unwrap().open_grants().iter().any(|(id, _)| *id == open));
}

/// A disk that fails.
struct Failing {
    file: File,
    syncs: u32,
}

impl Medium for Failing {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_once(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        if self.syncs > 2 { Err(io::Error::other("failed")) } else { self.file.sync_data() }
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.cut(bytes)
    }
}

#[test]
fn what_cannot_be_made_durable_is_not_granted_and_nothing_is_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open_on(dir.path(), |file| Failing { file, syncs: 0 }).unwrap();
    let id = leases.minted(grant(1)).unwrap();
    assert!(matches!(leases.leased(id, vec!["l".to_owned()]), Err(LeasesError::Write(_))));
    assert!(leases.get(id).unwrap().leases.is_empty());
    assert!(leases.minted(grant(2)).is_err());
    assert_eq!(leases.open_grants().len(), 1);
}

#[test]
fn nothing_is_granted_while_nobody_knows_which_file_a_cut_of_power_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open(dir.path()).unwrap();
    leases.minted(grant(1)).unwrap();
    leases.book().is_unsure = true;
    assert!(matches!(leases.minted(grant(2)), Err(LeasesError::Write(_))));
    assert_eq!(leases.jobs(), BTreeSet::from([job(1)]));
    drop(leases);
    assert!(Leases::open(dir.path()).unwrap().minted(grant(2)).is_ok());
}
