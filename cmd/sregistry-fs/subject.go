package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/secrets"
)

// spec is a registry as the command line names it: BACKEND[:LOCATION].
type spec struct {
	driver   backends.Driver
	location string
}

// String gives the spec as it is typed.
func (s spec) String() string {
	if s.location == "" {
		return s.driver.Scheme
	}
	return s.driver.Scheme + ":" + s.location
}

// subject is what an argument names: a file below a mount (path is set), or a
// collection or image of a registry.
type subject struct {
	path string
	spec spec
	name string // as written: [collection/]image[:tag][@version]
}

// image reads the subject's name as an image.
func (s subject) image() (backends.Ref, string, error) {
	ref, version, err := backends.ParseRef(s.name)
	if err != nil {
		return ref, version, usagef("an image is [collection/]image[:tag][@version]", "%w", err)
	}
	return ref, version, nil
}

// parseSpec reads BACKEND[:LOCATION]. A location that is a path is made
// absolute, because the mount may outlive the working directory.
func (a *app) parseSpec(text string) (spec, error) {
	scheme, location, _ := strings.Cut(text, ":")
	driver, err := a.driver(scheme)
	if err != nil {
		return spec{}, err
	}
	switch {
	case location == "":
	case driver.Location == "":
		return spec{}, usagef("", "backend %s takes no location, but %q was given", driver.Scheme, location)
	case strings.HasPrefix(driver.Location, "/"):
		if location, err = filepath.Abs(location); err != nil {
			return spec{}, err
		}
	}
	return spec{driver: driver, location: location}, nil
}

// driver finds a backend by the name people know it by.
func (a *app) driver(scheme string) (backends.Driver, error) {
	name := strings.ToLower(strings.ReplaceAll(scheme, "_", "-"))
	if name == "shub" {
		name = "hub"
	}
	for _, d := range a.drivers {
		if d.Scheme == name {
			return d, nil
		}
	}
	hint := "the backends are " + strings.Join(a.schemes(), ", ")
	if near := nearest(name, a.schemes()); near != "" {
		hint = "did you mean " + near + "? " + hint
	}
	return backends.Driver{}, usagef(hint, "there is no backend %q", scheme)
}

func (a *app) schemes() []string {
	var names []string
	for _, d := range a.drivers {
		names = append(names, d.Scheme)
	}
	slices.Sort(names)
	return names
}

// subject reads an argument: CLIENT://name, a path below a mount, or a name
// in the registry that --backend or SREGISTRY_CLIENT chooses.
func (a *app) subject(text string, settings *secrets.Source) (subject, error) {
	scheme, name, explicit := strings.Cut(text, "://")
	if !explicit {
		name = text
		if a.cfg.Backend == "" {
			if path, ok := underMount(text); ok {
				return subject{path: path}, nil
			}
			if looksLikePath(text) {
				return subject{}, usagef("mount a registry first, or name the image CLIENT://collection/image:tag",
					"%s is not below a mount of sregistry-fs", text)
			}
		}
	}
	var s spec
	var err error
	switch {
	case a.cfg.Backend != "":
		if s, err = a.parseSpec(a.cfg.Backend); err != nil {
			return subject{}, err
		}
		if explicit {
			d, err := a.driver(scheme)
			if err != nil {
				return subject{}, err
			}
			if d.Scheme != s.driver.Scheme {
				return subject{}, usagef("", "%s contradicts --backend %s", text, a.cfg.Backend)
			}
		}
	case explicit:
		if s.driver, err = a.driver(scheme); err != nil {
			return subject{}, err
		}
	default:
		client, ok := settings.Client()
		if !ok {
			return subject{}, usagef("write CLIENT://…, give --backend SPEC or set SREGISTRY_CLIENT; the backends are "+strings.Join(a.schemes(), ", "),
				"%s names no registry", quoteEmpty(text))
		}
		if s, err = a.parseSpec(client); err != nil {
			return subject{}, fmt.Errorf("SREGISTRY_CLIENT: %w", err)
		}
	}
	return subject{spec: s, name: strings.Trim(name, "/")}, nil
}

func quoteEmpty(text string) string {
	if text == "" {
		return "the command line"
	}
	return fmt.Sprintf("%q", text)
}

// looksLikePath reports what cannot be an image name without its registry.
func looksLikePath(text string) bool {
	return strings.HasPrefix(text, "/") || strings.HasPrefix(text, "./") || strings.HasPrefix(text, "../") || text == "." || text == ".."
}

// options checks --option against what the driver knows.
func (s spec) options(given map[string]string) error {
	for name := range given {
		i := slices.IndexFunc(s.driver.Options, func(o backends.Option) bool { return o.Name == name })
		if i >= 0 && !s.driver.Options[i].Secret {
			continue
		}
		if i >= 0 {
			return usagef("set "+s.driver.Options[i].Env+" in the environment or under \""+s.driver.Scheme+"\" in the secrets file",
				"option %s of backend %s is a credential, which every process could read from the command line", name, s.driver.Scheme)
		}
		var names []string
		for _, o := range s.driver.Options {
			if !o.Secret {
				names = append(names, o.Name)
			}
		}
		hint := "it has none"
		if len(names) > 0 {
			hint = "its options are " + strings.Join(names, ", ")
		}
		if near := nearest(name, names); near != "" {
			hint = "did you mean " + near + "? " + hint
		}
		return usagef(hint, "backend %s has no option %q", s.driver.Scheme, name)
	}
	return nil
}
