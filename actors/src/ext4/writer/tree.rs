//! What a [`crate::ext4::writer::Builder`] was told, kept small: millions of entries have to fit into memory. Checks nothing.

use crate::ext4::writer::extents::Run;
use crate::ext4::writer::inode::Time;

/// Node 0 is the root directory.
pub(in crate::ext4) const ROOT: u32 = 0;

/// Some bytes of [`Tree::bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ext4) struct Text {
    pub(in crate::ext4) start: u32,
    pub(in crate::ext4) length: u16,
}

#[derive(Debug, Clone, Copy)]
pub(in crate::ext4) enum Kind {
    Directory,
    /// Its runs are some of [`Tree::runs`].
    File {
        size: u64,
        first_run: u32,
        runs: u32,
    },
    Symlink(Text),
    Device {
        major: u32,
        minor: u32,
    },
    /// A fifo or a socket.
    Pipe,
}

#[derive(Debug, Clone, Copy)]
pub(in crate::ext4) struct Node {
    /// Type and permissions.
    pub(in crate::ext4) mode: u16,
    pub(in crate::ext4) uid: u32,
    pub(in crate::ext4) gid: u32,
    pub(in crate::ext4) time: Time,
    /// Names; a directory's `.` and its children's `..` among them.
    pub(in crate::ext4) links: u32,
    pub(in crate::ext4) kind: Kind,
}

#[derive(Debug, Clone, Copy)]
pub(in crate::ext4) struct Entry {
    pub(in crate::ext4) parent: u32,
    pub(in crate::ext4) node: u32,
    pub(in crate::ext4) name: Text,
}

#[derive(Debug, Clone, Copy)]
pub(in crate::ext4) struct Attribute {
    pub(in crate::ext4) node: u32,
    pub(in crate::ext4) prefix: u8,
    pub(in crate::ext4) name: Text,
    pub(in crate::ext4) value: Text,
}

#[derive(Debug, Default)]
pub(in crate::ext4) struct Tree {
    pub(in crate::ext4) nodes: Vec<Node>,
    pub(in crate::ext4) entries: Vec<Entry>,
    pub(in crate::ext4) runs: Vec<Run>,
    pub(in crate::ext4) attributes: Vec<Attribute>,
    /// Names, targets and values, one after the other.
    pub(in crate::ext4) bytes: Vec<u8>,
}

impl Tree {
    pub(in crate::ext4) fn text(&self, text: Text) -> &[u8] {
        &self.bytes[text.start as usize..][..text.length.into()]
    }

    pub(in crate::ext4) fn node(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    pub(in crate::ext4) fn node_mut(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    /// The runs of a file.
    pub(in crate::ext4) fn runs_of(&self, node: &Node) -> &[Run] {
        match node.kind {
            Kind::File { first_run, runs, .. } => &self.runs[first_run as usize..][..runs as usize],
            Kind::Directory | Kind::Symlink(_) | Kind::Device { .. } | Kind::Pipe => &[],
        }
    }

    /// The attributes of a node, once they are sorted.
    pub(in crate::ext4) fn attributes_of(&self, node: u32) -> &[Attribute] {
        let start = self.attributes.partition_point(|attribute| attribute.node < node);
        let behind = &self.attributes[start..];
        &behind[..behind.iter().take_while(|attribute| attribute.node == node).count()]
    }

    /// The first name of a node, for errors: it is searched for.
    pub(in crate::ext4) fn path(&self, node: u32) -> String {
        let mut names = Vec::new();
        let mut at = node;
        while let Some(entry) = self.entries.iter().find(|entry| entry.node == at && at != ROOT) {
            names.push(self.text(entry.name).escape_ascii().to_string());
            at = entry.parent;
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }

    /// Of something in a directory, for errors.
    pub(in crate::ext4) fn path_below(&self, parent: u32, name: &[u8]) -> String {
        format!("{}/{}", self.path(parent).trim_end_matches('/'), name.escape_ascii())
    }
}
