//! `banger`, the command line. All of it is in `bins::cli`.

fn main() -> std::process::ExitCode {
    bins::cli::main()
}
