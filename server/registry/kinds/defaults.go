package kinds

// setDefault points *p at value when it is nil.
func setDefault[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

// setZero gives *p value when it is zero.
func setZero[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}
