//! `banger-emu`: see `bins::emu`.

fn main() -> std::process::ExitCode {
    bins::emu::run::main()
}
