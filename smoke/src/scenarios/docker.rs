//! Docker in a VM of the default image. Its image comes from a tar made in the guest: no registry is needed.

use crate::case::{Case, Outcome, SETTLE, check};

/// Python, a shell, and the libraries of both: enough to run, to build on and to serve a port.
const IMPORT: &str = "cd / && programs='usr/bin/dash usr/bin/python3.11' && \
    libraries=$(ldd $programs | grep -o '/[^ ]*' | sort -u) && \
    tar -ch $programs $libraries usr/lib/python3.11/*.py usr/lib/python3.11/encodings usr/lib/python3.11/collections \
      usr/lib/python3.11/re usr/lib/python3.11/lib-dynload usr/lib/python3.11/http usr/lib/python3.11/email \
      usr/lib/python3.11/urllib usr/lib/python3.11/json usr/lib/python3.11/importlib usr/lib/python3.11/html 2>/dev/null | docker import - tiny";

const BUILD: &str = "mkdir -p /root/b && cd /root/b && echo from the context > file && \
    printf 'FROM tiny\\nCOPY file /file\\nRUN [\"/usr/bin/dash\", \"-c\", \"echo built > /built\"]\\n' > Dockerfile && \
    docker build -q -t made . && docker run --rm made /usr/bin/dash -c 'read a < /built; read b < /file; echo $a $b'";

const COMPOSE: &str = "cd /root/b && printf 'version: \"3\"\\nservices:\\n  web:\\n    image: made\\n    \
    command: [\"/usr/bin/python3.11\", \"-m\", \"http.server\", \"80\"]\\n    ports: [\"8080:80\"]\\n' > docker-compose.yml && \
    docker-compose up -d";

pub(super) fn docker(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &["--wait", "system", "--memory", "1024M"])?;
    // Nothing runs before somebody asks for it.
    let idle = case.guest(&vm, "systemctl is-active docker.service containerd.service || true")?;
    check(idle.lines().all(|state| state == "inactive"), || format!("before the first use: {idle}"))?;
    case.guest(&vm, IMPORT)?;
    let driver = case.guest(&vm, "docker info -f '{{.Driver}}'; stat -f -c %T /var/lib/docker")?;
    check(driver == "overlay2\next2/ext3", || format!("the storage driver and its file system: {driver}"))?;
    let said = case.guest(&vm, "docker run --rm tiny /usr/bin/dash -c 'echo from a container'")?;
    check(said == "from a container", || format!("docker run said `{said}`"))?;
    let said = case.guest(&vm, BUILD)?;
    check(said.ends_with("built from the context"), || format!("docker build made `{said}`"))?;
    case.guest(&vm, COMPOSE)?;
    case.wait(SETTLE, "the published port", || {
        let done = case.banger(&["vm", "exec", &vm, "--", "curl", "-sf", "http://127.0.0.1:8080/file"])?;
        Ok(if done.out().trim() == "from the context" { Ok(()) } else { Err(done.err()) })
    })
}
