//! `bangerd`, the daemon. All of it is in `bins::daemon`.

fn main() -> std::process::ExitCode {
    bins::daemon::main()
}
