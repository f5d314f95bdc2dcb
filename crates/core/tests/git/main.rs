//! Host repositories, views, git layers and landings against real git.
//!
//! There is no mount here: the tree "inside" is a copy of the host's with the git layer put into it and
//! the alternates led to the view, which is all that a driver's mounts change for git.

mod lands;
mod layers;
mod owners;
mod repos;
mod shapes;
mod views;
mod world;
