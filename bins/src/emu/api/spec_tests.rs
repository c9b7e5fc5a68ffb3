//! Holds the routes and bodies against Firecracker's OpenAPI file, where a checkout of it lies beside this repository: every
//! route and every field is either taken or refused on purpose.

use super::request::Request;
use crate::emu::fault::Fault;
use axum::http::Method;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything that is refused on purpose, as method and path.
const REFUSED: [&str; 20] = [
    "GET /balloon",
    "GET /balloon/hinting/status",
    "GET /balloon/statistics",
    "GET /hotplug/memory",
    "GET /mmds",
    "PATCH /balloon",
    "PATCH /balloon/hinting/start",
    "PATCH /balloon/hinting/stop",
    "PATCH /balloon/statistics",
    "PATCH /hotplug/memory",
    "PATCH /mmds",
    "PATCH /pmem/x",
    "PUT /balloon",
    "PUT /cpu-config",
    "PUT /hotplug/memory",
    "PUT /mmds",
    "PUT /mmds/config",
    "PUT /pmem/x",
    // Below: supported routes whose sample body asks for something that is refused.
    "PUT /snapshot/create snapshot_type=Diff",
    "PUT /snapshot/load mem_backend.backend_type=Uffd",
];

/// The little of YAML that the file uses: a tree of keys by indentation, with lists of words.
#[derive(Debug, Default)]
struct Node {
    text: String,
    children: BTreeMap<String, Node>,
    items: Vec<String>,
}

impl Node {
    fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.children.get(*key))
    }
}

fn parse(text: &str) -> Node {
    let mut root = Node::default();
    // The keys above the present line, each with its indentation.
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut unnamed = 0;
    for line in text.lines() {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let mut indent = line.len() - line.trim_start().len();
        let mut content = content;
        // The items of a list may stand as far left as the key that they belong to.
        let item = content.starts_with("- ");
        let is_over =
            |(other, key): &(usize, String)| *other > indent || (*other == indent && (!item || key.starts_with('-')));
        while above.last().is_some_and(is_over) {
            above.pop();
        }
        if let Some(item) = content.strip_prefix("- ") {
            if !item.contains(": ") && !item.ends_with(':') {
                node(&mut root, &above).items.push(unquoted(item));
                continue;
            }
            // A list of maps: each gets a key of its own.
            unnamed += 1;
            above.push((indent, format!("-{unnamed}")));
            indent += 2;
            content = item;
        }
        let Some((key, value)) = content.split_once(':') else { continue };
        above.push((indent, unquoted(key)));
        let value = value.trim();
        let node = node(&mut root, &above);
        if let Some(list) = value.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
            node.items = list.split(',').map(|item| unquoted(item.trim())).collect();
        } else {
            node.text = unquoted(value);
        }
    }
    root
}

fn node<'a>(root: &'a mut Node, above: &[(usize, String)]) -> &'a mut Node {
    above.iter().fold(root, |node, (_, key)| node.children.entry(key.clone()).or_default())
}

fn unquoted(text: &str) -> String {
    text.trim_matches('"').to_owned()
}

/// The definition that a schema names.
fn reference(schema: &Node) -> Option<String> {
    Some(schema.at(&["$ref"])?.text.rsplit('/').next()?.to_owned())
}

struct Spec(Node);

impl Spec {
    fn definition(&self, name: &str) -> &Node {
        self.0.at(&["definitions", name]).unwrap_or_else(|| panic!("the file defines no {name}"))
    }

    /// Some value of a type; all the values of an enumeration.
    fn samples(&self, field: &str, schema: &Node) -> Vec<Value> {
        if matches!(field, "drive_id" | "iface_id" | "id") {
            return vec![json!("x")];
        }
        if let Some(name) = reference(schema) {
            return self.samples(field, self.definition(&name));
        }
        if let Some(words) = schema.at(&["enum"]) {
            return words.items.iter().map(|word| json!(word)).collect();
        }
        match schema.at(&["type"]).map(|kind| kind.text.as_str()) {
            Some("string") if field == "guest_mac" => vec![json!("06:00:00:00:00:01")],
            Some("string") => vec![json!("x")],
            Some("integer") => vec![json!(70)],
            Some("boolean") => vec![json!(true)],
            Some("array") => match schema.at(&["items"]) {
                Some(items) => self.samples("", items).into_iter().map(|item| json!([item])).collect(),
                None => vec![json!([])],
            },
            Some("object") => self.bodies(schema),
            kind => panic!("{field} has the type {kind:?}"),
        }
    }

    fn required(&self, schema: &Node) -> Map<String, Value> {
        let names = schema.at(&["required"]).map(|node| node.items.as_slice()).unwrap_or_default();
        let sample = |name: &String| {
            let field = schema.at(&["properties", name]).unwrap_or_else(|| panic!("no property {name}"));
            (name.clone(), self.samples(name, field)[0].clone())
        };
        names.iter().map(sample).collect()
    }

    /// Bodies that together have every field with every one of its values.
    fn bodies(&self, schema: &Node) -> Vec<Value> {
        let required = self.required(schema);
        let mut bodies = vec![Value::Object(required.clone())];
        let none = BTreeMap::new();
        let fields = schema.at(&["properties"]).map_or(&none, |node| &node.children);
        for (name, field) in fields {
            for value in self.samples(name, field) {
                let mut body = required.clone();
                body.insert(name.clone(), value);
                bodies.push(Value::Object(body));
            }
        }
        bodies
    }
}

fn file() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/firecracker");
    let files = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).max()
}

/// Refusals that a parser of bodies may have; a route or a field that is not known is none of them.
fn is_on_purpose(fault: &Fault) -> bool {
    let text = fault.to_string();
    matches!(fault, Fault::NotSupported(_))
        || text.contains("either `mem_backend` or `mem_file_path`")
        || text.starts_with("Empty PATCH request")
}

#[test]
fn every_route_and_field_of_the_spec_is_taken_or_refused_on_purpose() {
    let Some(path) = file() else {
        println!("skipped: no ../shared/firecracker/*.yaml beside this repository");
        return;
    };
    let spec = Spec(parse(&std::fs::read_to_string(path).unwrap()));
    let paths = &spec.0.at(&["paths"]).unwrap().children;
    assert!(paths.len() > 20, "only {} paths were read", paths.len());
    let (mut refused, mut fields) = (Vec::new(), 0);
    for (path, methods) in paths {
        let route = path.replace("{drive_id}", "x").replace("{iface_id}", "x").replace("{id}", "x");
        for (name, operation) in &methods.children {
            let method = Method::from_bytes(name.to_uppercase().as_bytes()).unwrap();
            let body = operation.at(&["parameters"]).into_iter().flat_map(|list| list.children.values());
            let body = body.filter_map(|parameter| reference(parameter.at(&["schema"])?)).next();
            let bodies = body.map_or(vec![Value::Null], |name| spec.bodies(spec.definition(&name)));
            for body in bodies {
                fields += 1;
                let text = if body.is_null() { String::new() } else { body.to_string() };
                match Request::parse(&method, &route, text.as_bytes()) {
                    Ok(_) => unknown_fields_are_refused(&method, &route, &body),
                    Err(fault) => {
                        assert!(is_on_purpose(&fault), "{method} {route} {text}: {fault}");
                        if matches!(fault, Fault::NotSupported(_)) {
                            refused.push(format!("{method} {route}"));
                        }
                    }
                }
            }
        }
    }
    assert!(fields > 100, "only {fields} bodies were tried");
    refused.sort();
    refused.dedup();
    let route = |entry: &&str| entry.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let mut expected: Vec<_> = REFUSED.iter().map(route).collect();
    expected.sort();
    assert_eq!(refused, expected);
}

fn unknown_fields_are_refused(method: &Method, route: &str, body: &Value) {
    let Value::Object(fields) = body else { return };
    let mut fields = fields.clone();
    fields.insert("no_such_field".to_owned(), json!(1));
    let fault = Request::parse(method, route, Value::Object(fields).to_string().as_bytes()).unwrap_err();
    assert!(fault.to_string().contains("unknown field `no_such_field`"), "{method} {route}: {fault}");
}
