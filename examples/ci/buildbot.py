"""master.cfg: a build factory. An interrupt sends SIGTERM first, which cancels the daemon's job."""

from buildbot.plugins import steps, util

factory = util.BuildFactory([
    steps.Git(repourl="https://git.corp.example/app.git", mode="full", method="fresh"),
    steps.ShellCommand(
        name="ampoule",
        command=[
            "ampoule", "submit", "job.toml", "--wait", "--out", "out", "--project", "app",
            "--key", "/etc/ampoule/builder.pub",
            "--idempotency-key", util.Interpolate("bb-%(prop:buildername)s-%(prop:buildnumber)s"),
        ],
        env={
            "AMPOULE_SERVER": "https://build.corp.example:7443",
            "AMPOULE_CA": "/etc/ampoule/ca.pem",
            "AMPOULE_CERT": "/etc/ampoule/client.pem",
            "AMPOULE_KEY": "/etc/ampoule/client.key",
        },
        sigtermTime=30,
        haltOnFailure=True,
    ),
])
