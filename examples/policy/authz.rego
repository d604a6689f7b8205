# Who may do what with ampouled. `data.ampoule.authz.allow` is the one rule that is asked; only `true` allows.
#
# Roles and who has them are data (data.json):
#   roles     role → the actions that it has
#   bindings  who has which role where:
#     subject   exactly this caller: "uid:1000", "spiffe://…", "dns:…", "<issuer>#<sub>"
#     claims    or: every one of these claims of its token is exactly so; with the issuer's ("iss") among them
#     role      the role
#     projects  the projects, or ["*"] for all of them and the host itself
#     profiles  the profiles that it may ask for; left out: any
#     own       true: only jobs that the caller has submitted itself
package ampoule.authz

default allow := false

allow if {
	some binding in data.bindings
	is_bound(binding)
	input.action in data.roles[binding.role]
	is_in_scope(binding)
	has_profile(binding)
	owns(binding)
}

is_bound(binding) if binding.subject == input.caller.subject

# A claim says something only together with who says it.
is_bound(binding) if {
	not binding.subject
	input.caller.means == "token"
	binding.claims.iss
	every name, value in binding.claims {
		input.caller.claims[name] == value
	}
}

is_in_scope(binding) if "*" in binding.projects

is_in_scope(binding) if input.project in binding.projects

# Everybody with a role may see the schema.
is_in_scope(_) if input.action == "describe"

has_profile(binding) if not binding.profiles

has_profile(_) if input.action != "submit"

has_profile(binding) if input.profile in binding.profiles

owns(binding) if not binding.own

owns(_) if not input.owner

owns(_) if input.owner == input.caller.subject
