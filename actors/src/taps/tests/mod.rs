//! The pool against a model, and the actor with a scripted helper.

mod actor;
mod model;
