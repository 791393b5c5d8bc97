//! What is rehearsed, a file each.

mod applications;
mod back_and_forth;
mod manual;
mod node_vanishes;
mod operator_killed;
mod owned;
mod rebalance;
mod second_notice;
mod spot;
mod steps;
mod store_down;
mod target_dies;
mod ten_apps;
mod tree;
mod wrong_image;

pub use self::{
    applications::applications,
    back_and_forth::back_and_forth,
    manual::manual,
    node_vanishes::node_vanishes,
    operator_killed::operator_killed,
    owned::{deployment, stateful_set},
    rebalance::rebalance,
    second_notice::second_notice,
    spot::spot,
    store_down::store_down,
    target_dies::target_dies,
    ten_apps::ten_apps,
    tree::{stubborn, tree},
    wrong_image::wrong_image,
};
