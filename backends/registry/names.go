package registry

import (
	"fmt"
	"path"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

func invalid(op string, ref backends.Ref, hint, format string, args ...any) error {
	return &backends.Error{Op: op, Ref: ref, Kind: backends.Invalid, Err: fmt.Errorf(format, args...), Hint: hint}
}

// storedRef gives ref as the server spells names: collection by its
// format_collection_name unless it has a slash (those stem from builds), image and tag in
// lower case.
func storedRef(ref backends.Ref) backends.Ref {
	coll := strings.ToLower(ref.Collection)
	if !strings.Contains(coll, "/") {
		coll = collectionName(ref.Collection)
	}
	return backends.Ref{Collection: coll, Image: strings.ToLower(ref.Image), Tag: strings.ToLower(ref.Tag)}
}

// collectionName is format_collection_name: every run of characters that are no
// ASCII letters or digits becomes one "-", none at the ends, in lower case.
func collectionName(s string) string {
	var out strings.Builder
	gap := false
	for _, c := range s {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			gap = true
			continue
		}
		if gap && out.Len() > 0 {
			out.WriteByte('-')
		}
		gap = false
		out.WriteRune(c)
	}
	return out.String()
}

// pushRef gives the name under which the server will store a push of ref, or an
// error of kind Invalid if that would be no mere matter of spelling.
func pushRef(ref backends.Ref) (backends.Ref, error) {
	if ref.IsCollection() {
		return ref, invalid("push", ref, "", "names no image")
	}
	if err := ref.Check(); err != nil {
		return ref, invalid("push", ref, "", "%w", err)
	}
	want := storedRef(ref)
	if strings.Contains(ref.Collection, "/") {
		return want, invalid("push", ref, "push to "+collectionName(ref.Collection)+" instead", "this registry has one level of collections")
	}
	if want.Collection == "" {
		return want, invalid("push", ref, "use letters and digits", "the registry would leave nothing of the collection's name")
	}
	for _, s := range []string{want.Image, want.Tag} {
		for _, ext := range []string{".img", ".simg", ".sif"} {
			if strings.Contains(s, ext) {
				return want, invalid("push", ref, "leave "+ext+" out", "the registry would remove %q from the name", ext)
			}
		}
	}
	if strings.Contains(want.Tag, ":") {
		return want, invalid("push", ref, "", "the registry cannot store a tag with ':'")
	}
	if unfinished(want.Tag) {
		return want, invalid("push", ref, "", "the registry uses such tags for unfinished uploads")
	}
	if strings.TrimSpace(want.Image) != want.Image || strings.TrimSpace(want.Tag) != want.Tag {
		return want, invalid("push", ref, "", "name or tag begins or ends with a space")
	}
	return want, nil
}

// unfinished reports whether a tag is the server's placeholder for a library
// push that has not ended: DUMMY- and a UUID.
func unfinished(tag string) bool {
	rest, ok := strings.CutPrefix(strings.ToUpper(tag), "DUMMY-")
	if !ok || len(rest) != 36 {
		return false
	}
	for i, c := range rest {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || (!dash && !strings.ContainsRune("0123456789ABCDEF", c)) {
			return false
		}
	}
	return true
}

// refOf gives the Ref of a container by its names in the database. A build's
// collection has a slash and its containers repeat it as their name: they are shown
// under its last part.
func refOf(collection, name, tag string) backends.Ref {
	if strings.Contains(collection, "/") && name == collection {
		name = path.Base(collection)
	}
	return backends.Ref{Collection: collection, Image: name, Tag: tag}
}

// storedName is the inverse of refOf for the name.
func storedName(ref backends.Ref) string {
	if strings.Contains(ref.Collection, "/") && ref.Image == path.Base(ref.Collection) {
		return ref.Collection
	}
	return ref.Image
}

// addressOf gives the part of an address that names a container.
func addressOf(ref backends.Ref) []string {
	last := ref.Image + ":" + ref.Tag
	if storedName(ref) == ref.Collection && strings.Contains(ref.Collection, "/") {
		// The server joins collection and name again when it finds nothing.
		return append(strings.Split(path.Dir(ref.Collection), "/"), last)
	}
	return append(strings.Split(ref.Collection, "/"), last)
}
