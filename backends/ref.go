package backends

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// DefaultCollection holds images that are named without a collection.
	DefaultCollection = "library"
	// DefaultTag is the tag of an image that is named without one.
	DefaultTag = "latest"
	// MaxName is the longest name of a directory entry, in bytes (NAME_MAX).
	MaxName = 255
	// Suffix ends the canonical file name of an image.
	Suffix = ".simg"
)

// Ref names an image in a registry. Collection may have several levels
// separated by "/"; Image may not. A Ref whose Image is empty names the
// collection itself; the zero Ref names the registry.
//
// A Ref is comparable and is a plain value: it makes no promise that the
// image exists. Names from outside pass Check before anything trusts them.
type Ref struct{ Collection, Image, Tag string }

// IsCollection reports whether r names a collection and not an image.
func (r Ref) IsCollection() bool { return r.Image == "" }

// String gives collection/image:tag, or the collection alone.
func (r Ref) String() string {
	if r.IsCollection() {
		return r.Collection
	}
	s := r.Image + ":" + r.Tag
	if r.Collection != "" {
		s = r.Collection + "/" + s
	}
	return s
}

// FileName gives the canonical name of the image in its directory:
// image:tag.simg.
func (r Ref) FileName() string { return r.Image + ":" + r.Tag + Suffix }

// Check tells why r cannot be a path in a mount, as an *Error of kind
// Invalid, or nil. It is the allowlist that every name a server sends has to
// pass: names that fail are left out of listings and counted.
//
//   - each component is what CheckName accepts and does not start with "."
//     (dot names are scratch files of the mount);
//   - an image has no ":" and no "@", a tag no "@", because the file name could
//     not be read back;
//   - image:tag.simg fits a directory entry.
func (r Ref) Check() error {
	if err := CheckCollection(r.Collection); err != nil {
		return err
	}
	if r.IsCollection() {
		if r.Tag != "" {
			return invalid(r, errors.New("a tag without an image"))
		}
		return nil
	}
	switch err := CheckName(r.Image); {
	case err != nil:
		return invalid(r, fmt.Errorf("image: %w", err))
	case strings.HasPrefix(r.Image, "."):
		return invalid(r, errors.New("image starts with a dot"))
	case strings.ContainsAny(r.Image, ":@"):
		return invalid(r, errors.New("image contains ':' or '@'"))
	}
	switch err := CheckName(r.Tag); {
	case err != nil:
		return invalid(r, fmt.Errorf("tag: %w", err))
	case strings.Contains(r.Tag, "@"):
		return invalid(r, errors.New("tag contains '@'"))
	case len(r.FileName()) > MaxName:
		return invalid(r, fmt.Errorf("file name is longer than %d bytes", MaxName))
	}
	return nil
}

// CheckCollection tells why a collection's name cannot be a directory path,
// as an *Error of kind Invalid, or nil.
func CheckCollection(name string) error {
	for part := range strings.SplitSeq(name, "/") {
		err := CheckName(part)
		if err == nil && strings.HasPrefix(part, ".") {
			err = errors.New("starts with a dot")
		}
		if err != nil {
			return invalid(Ref{Collection: name}, fmt.Errorf("collection: %w", err))
		}
	}
	return nil
}

// CheckName tells why s cannot be one entry of a directory: it is empty, "."
// or "..", longer than MaxName, not UTF-8, or holds "/", NUL, a control
// character or a character that changes the direction or the look of its
// neighbours (bidi and other format characters, unassigned and private-use
// code points). It returns nil for every other name.
func CheckName(s string) error {
	switch {
	case s == "":
		return errors.New("empty name")
	case s == "." || s == "..":
		return fmt.Errorf("name %q", s)
	case len(s) > MaxName:
		return fmt.Errorf("name is longer than %d bytes", MaxName)
	case !utf8.ValidString(s):
		return errors.New("name is not UTF-8")
	}
	for _, c := range s {
		if c == '/' || !unicode.IsGraphic(c) || (unicode.IsSpace(c) && c != ' ') {
			return fmt.Errorf("character %q in a name", c)
		}
	}
	return nil
}

// ParseRef reads [collection/]image[:tag][@version], the form of the command
// line and of the Python client. A missing collection is DefaultCollection, a
// missing tag DefaultTag. One canonical suffix (.simg, .sif or .img) at the end of
// the tag or image is dropped. The error is an *Error of kind Invalid.
func ParseRef(s string) (ref Ref, version string, err error) {
	rest := s
	base := rest
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		ref.Collection, base = rest[:i], rest[i+1:]
	} else {
		ref.Collection = DefaultCollection
	}
	base, version, _ = strings.Cut(base, "@")
	if version != "" {
		version = TrimSuffix(version)
	}
	base = TrimSuffix(base)
	ref.Image, ref.Tag, _ = strings.Cut(base, ":")
	if ref.Tag == "" {
		ref.Tag = DefaultTag
	}
	if ref.Image == "" {
		return Ref{}, "", invalid(Ref{}, fmt.Errorf("%q names no image; the form is [collection/]image[:tag][@version]", s))
	}
	if err := ref.Check(); err != nil {
		return Ref{}, "", err
	}
	return ref, version, nil
}

// TrimSuffix drops one of the suffixes that people give image files: .simg,
// .sif or .img. Only the end of the name counts, and only one is dropped.
func TrimSuffix(name string) string {
	for _, suffix := range []string{Suffix, ".sif", ".img"} {
		if t, ok := strings.CutSuffix(name, suffix); ok && t != "" {
			return t
		}
	}
	return name
}

func invalid(r Ref, err error) *Error {
	return &Error{Op: "name", Ref: r, Kind: Invalid, Err: err}
}
