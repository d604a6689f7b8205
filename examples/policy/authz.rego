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
#     host_image, root
#               true: its jobs may have the host's own files as their image, and steps that are root in the sandbox;
#               left out: an image of their own, and the user `build`
package ampoule.authz

default allow := false

allow if {
	some binding in data.bindings
	is_bound(binding)
	input.action in data.roles[binding.role]
	is_in_scope(binding)
	has_profile(binding)
	has_image(binding)
	has_user(binding)
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

# A job has an image of its own. What is not one of these words is not let in by not being known here.
has_image(_) if input.action != "submit"

has_image(_) if input.image in {"oci", "tar"}

# The host's files are what the operator has installed, with whatever lies among them: who may have them is said by name.
has_image(binding) if {
	input.image == "host"
	binding.host_image == true
}

# Its steps are an ordinary user.
has_user(_) if input.action != "submit"

has_user(_) if input.job.user == "build"

# Root in the sandbox sees more of the kernel than others: who may be that is said by name too.
has_user(binding) if {
	input.job.user == "root"
	binding.root == true
}

owns(binding) if not binding.own

owns(_) if not input.owner

owns(_) if input.owner == input.caller.subject
