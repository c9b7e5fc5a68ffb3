//! The network helper: see `bins::privileged`.

fn main() -> std::process::ExitCode {
    bins::privileged::main()
}
