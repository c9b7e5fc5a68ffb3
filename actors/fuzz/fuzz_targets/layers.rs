//! Feeds any bytes to the reader of layers, twice: once as the first layer, once as one on top of it.
#![no_main]

use actors::ext4::Tree;
use actors::ext4::layer::Layer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let directory = std::env::temp_dir();
    let mut tree = Tree::layered();
    for _ in 0..2 {
        // An error is as good as a layer: what counts is that it returns, in bounded time and memory.
        let Ok(layer) = Layer::read(bytes, &directory) else { return };
        if tree.add_layer(layer).is_err() {
            return;
        }
    }
    assert_ne!(tree.digest(), [0; 32]);
});
