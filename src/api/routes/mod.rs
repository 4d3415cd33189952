//! The one list of routes. Dispatch, authentication, 404, 405 and the OpenAPI document come from it.

mod credentials;
mod daemon;
mod endpoints;
mod files;
mod keys;
mod processes;
mod sessions;
mod templates;
mod volumes;

use std::sync::LazyLock;

use super::route::Route;

/// Every route.
pub static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let families = [
        sessions::ROUTES,
        processes::ROUTES,
        files::ROUTES,
        templates::ROUTES,
        volumes::ROUTES,
        keys::ROUTES,
        credentials::ROUTES,
        endpoints::ROUTES,
        daemon::ROUTES,
    ];
    families.concat()
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::route::Access;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_places_are_unique_and_documented() {
        let mut names = BTreeSet::new();
        let mut places = BTreeSet::new();
        for route in ROUTES.iter() {
            assert!(names.insert(route.name), "{}", route.name);
            assert!(
                places.insert((route.path, route.method.as_str())),
                "{}",
                route.path
            );
            assert!(route.about.ends_with('.'), "{}", route.name);
        }
    }

    #[test]
    fn only_these_routes_answer_strangers() {
        let open: Vec<_> = ROUTES
            .iter()
            .filter(|route| route.access == Access::Open)
            .map(|route| route.path)
            .collect();
        assert_eq!(open, ["/health", "/ready", "/openapi.json"]);
    }
}
