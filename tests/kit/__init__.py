"""What the tests share: a throwaway stack, seen as a user sees it."""
